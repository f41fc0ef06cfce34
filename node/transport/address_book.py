"""Which addresses of peers we believe, in a table that is bounded per peer and in peers."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ...config.addresses import parse_address
from ...dht.peer_id import PeerId

_MAX_PEERS = 20_000


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
                address = parse_address(text)
            except ValueError:
                continue
            if address.peer not in (None, str(peer)) or not address.is_dialable:
                continue
            host = address.host
            if address.is_numeric:
                ip = ipaddress.ip_address(host)
                if ip.is_multicast:
                    continue
                host = str(ip)
            yield f"/{address.kind}/{host}/tcp/{address.port}"

    def get(self, peer: PeerId) -> list[str]:
        return list(self._known.get(peer, ()))

    def prefer(self, peer: PeerId, address: str) -> None:
        """Put an address that just answered in front of the others."""
        known: Sequence[str] = self._known.get(peer, ())
        if address in known:
            self._known[peer] = [address, *(other for other in known if other != address)]
