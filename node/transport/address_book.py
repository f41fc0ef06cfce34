"""Multiaddrs: which ones we believe, and a bounded table of them per peer."""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ...dht.peer_id import PeerId
from ...errors import FormatError

_MAX_TEXT = 300
_MAX_PEERS = 20_000
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)


def parse_address(text: str) -> tuple[str, PeerId | None]:
    """Split `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/ID]` into canonical address and peer id.

    Raises:
        FormatError: any other shape; a host or port out of range.
    """
    parts = text.split("/") if len(text) <= _MAX_TEXT else []
    if len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp":
        raise _bad(text)
    kind, host, port = parts[1], parts[2], parts[4]
    try:
        if kind == "ip4":
            host = str(ipaddress.IPv4Address(host))
        elif kind == "ip6":
            host = str(ipaddress.IPv6Address(host))
        elif kind not in ("dns", "dns4", "dns6") or not _DNS_NAME.fullmatch(host):
            raise _bad(text)
    except ipaddress.AddressValueError as error:
        raise _bad(text) from error
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536):
        raise _bad(text)
    peer = None
    if len(parts) == 7:
        if parts[5] != "p2p":
            raise _bad(text)
        peer = PeerId.parse(parts[6])
    return f"/{kind}/{host}/tcp/{int(port)}", peer


def is_dialable(address: str) -> bool:
    """Whether a canonical address can be dialled: a port, and not the wildcard host."""
    _, kind, host, _, port = address.split("/")
    if port == "0":
        return False
    if kind in ("ip4", "ip6"):
        ip = ipaddress.ip_address(host.partition("%")[0])
        return not (ip.is_unspecified or ip.is_multicast)
    return True


def _bad(text: str) -> FormatError:
    return FormatError(
        f"{text[:80]!r} is not an address meshnode can use.",
        hint="Write it as /ip4/192.0.2.7/tcp/4001 (or ip6, dns), with /p2p/PEER-ID where needed.",
    )


class AddressBook:
    """Where peers listen. Newest addresses first; bounded per peer and in peers."""

    def __init__(self, own: PeerId, *, per_peer: int = 16, peers: int = _MAX_PEERS) -> None:
        self._own = own
        self._per_peer = per_peer
        self._peers = peers
        self._known: OrderedDict[PeerId, list[str]] = OrderedDict()

    def add(self, peer: PeerId, addresses: Iterable[str]) -> bool:
        """Remember sound addresses of `peer`; returns whether one of them was new.

        What does not parse, cannot be dialled, or names another peer is ignored: such lists come
        from strangers.
        """
        if peer == self._own:
            return False
        sound = list(dict.fromkeys(self._sound(peer, addresses)))
        if not sound:
            return False
        before = self._known.get(peer, [])
        merged = sound + [address for address in before if address not in sound]
        self._known[peer] = merged[: self._per_peer]
        self._known.move_to_end(peer)
        if len(self._known) > self._peers:
            self._known.popitem(last=False)
        return any(address not in before for address in sound)

    def _sound(self, peer: PeerId, addresses: Iterable[str]) -> Iterable[str]:
        for _, text in zip(range(self._per_peer), addresses, strict=False):
            try:
                address, named = parse_address(text)
            except FormatError:
                continue
            if is_dialable(address) and named in (None, peer):
                yield address

    def get(self, peer: PeerId) -> list[str]:
        return list(self._known.get(peer, ()))

    def prefer(self, peer: PeerId, address: str) -> None:
        """Put an address that just answered in front of the others."""
        known: Sequence[str] = self._known.get(peer, ())
        if address in known:
            self._known[peer] = [address, *(other for other in known if other != address)]
