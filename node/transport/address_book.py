"""Which addresses of peers we believe, in a table that is bounded per peer and in peers."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ...config.addresses import MAX_ADDRESS_CHARS, parse_address
from ...dht.peer_id import PeerId

_MAX_PEERS = 20_000


@lru_cache(maxsize=16384)
def _dialable(text: str) -> tuple[str, str | None] | None:
    """The canonical form of an address one can dial, and the peer it names; None for others.

    Members tell each other the same addresses over and over: parsing each once is enough.
    """
    try:
        address = parse_address(text)
    except ValueError:
        return None
    if not address.is_dialable:
        return None
    host = address.host
    if address.is_numeric:
        ip = ipaddress.ip_address(host)
        if ip.is_multicast:
            return None
        host = str(ip)
    return f"/{address.kind}/{host}/tcp/{address.port}", address.peer


class AddressBook:
    """Where peers listen; bounded per peer and in peers.

    First the address that answered last, which what others say can never displace; then the
    newest. Nor do peers that are only talked about displace one that has answered: they go first.
    """

    def __init__(self, own: PeerId, *, per_peer: int = 16, peers: int = _MAX_PEERS) -> None:
        self._own = own
        self._per_peer = per_peer
        self._peers = peers
        self._known: dict[PeerId, list[str]] = {}
        self._answered: dict[PeerId, str] = {}
        # Each known peer is in one of these; the one heard of longest ago is first.
        self._hearsay: OrderedDict[PeerId, None] = OrderedDict()
        self._met: OrderedDict[PeerId, None] = OrderedDict()

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
        answered = [self._answered[peer]] if peer in self._answered else []
        merged = list(dict.fromkeys([*answered, *sound, *before]))
        self._remember(peer, merged[: self._per_peer])
        return any(address not in before for address in sound)

    def _remember(self, peer: PeerId, addresses: list[str]) -> None:
        self._known[peer] = addresses
        order = self._met if peer in self._answered else self._hearsay
        order[peer] = None
        order.move_to_end(peer)
        if len(self._known) > self._peers:
            forgotten, _ = (self._hearsay or self._met).popitem(last=False)
            del self._known[forgotten]
            self._answered.pop(forgotten, None)

    def _sound(self, peer: PeerId, addresses: Iterable[str]) -> Iterable[str]:
        for _, text in zip(range(self._per_peer), addresses, strict=False):
            known = _dialable(text) if len(text) <= MAX_ADDRESS_CHARS else None
            if known is not None and (known[1] is None or known[1] == str(peer)):
                yield known[0]

    def get(self, peer: PeerId) -> list[str]:
        return list(self._known.get(peer, ()))

    def prefer(self, peer: PeerId, address: str) -> None:
        """Put an address that just answered in front of the others, and keep it there."""
        known: Sequence[str] = self._known.get(peer, ())
        if address in known:
            self._answered[peer] = address
            self._hearsay.pop(peer, None)
            self._remember(peer, [address, *(other for other in known if other != address)])
