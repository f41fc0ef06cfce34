"""Where a peer listens: what it signed itself, before what others say of it."""

from __future__ import annotations

import trio

from ..errors import MembershipError, PeerError
from .context import DhtContext
from .gossip import Gossip
from .kad_wire import PeerAddresses
from .peer_id import PeerId
from .peer_record import PeerRecord
from .query import Plan, Queries
from .value_reader import ValueReader

_CONNECT_WITHIN = 5.0


class Whereabouts:
    """Finds addresses of peers."""

    def __init__(
        self,
        context: DhtContext,
        queries: Queries,
        reader: ValueReader,
        gossip: Gossip | None,
    ) -> None:
        self._host = context.host
        self._client = context.client
        self._contacts = context.contacts
        self._queries = queries
        self._reader = reader
        self._gossip = gossip

    async def find(self, peer: PeerId) -> list[str]:
        """Multiaddrs of `peer`, the likeliest first; see `Dht.find_peer`."""
        if peer in self._host.connected_peers() and (known := self._host.known_addresses(peer)):
            return known
        told, is_there = self._on_map(peer)
        if told is not None and is_there:
            return self._believe(told)
        found = await self._answers(peer)
        if not found:
            await self._ask_others(peer)
            found = await self._answers(peer)
        if found:
            return self._host.known_addresses(peer)
        signed = (await self._reader.peer_record(peer)).record
        if signed is None or (told is not None and told.seq > signed.seq):
            signed = told
        return self._host.known_addresses(peer) if signed is None else self._believe(signed)

    def _on_map(self, peer: PeerId) -> tuple[PeerRecord | None, bool]:
        """What a complete map says, and whether the peer is there, as far as gossip has come."""
        if self._gossip is None or not self._gossip.complete:
            return None, False
        return self._gossip.map.record(peer), not self._gossip.map.is_gone(peer)

    async def _ask_others(self, peer: PeerId) -> None:
        """Ask those near `peer` until one names an address that we do not have."""
        stale = set(self._host.known_addresses(peer))

        async def ask(other: PeerId) -> tuple[bool | None, tuple[PeerAddresses, ...]]:
            closer = await self._client.find_node(other, bytes(peer))
            named = any(e.peer == peer and not stale.issuperset(e.addresses) for e in closer)
            return named or None, closer

        await self._queries.run(bytes(peer), ask, Plan("find_peer"))

    async def _answers(self, peer: PeerId) -> bool:
        """Whether what we were told leads to `peer`: the connection proves who is there."""
        if not self._host.known_addresses(peer):
            return False
        with trio.move_on_after(_CONNECT_WITHIN):
            try:
                await self._host.connect(peer)
            except (PeerError, MembershipError):
                return False
            return True
        return False

    def _believe(self, signed: PeerRecord) -> list[str]:
        """The addresses in `signed`, then those we had; none when the peer said goodbye."""
        if signed.leaving:
            return []
        peer = signed.peer
        hearsay = self._host.known_addresses(peer)
        # Also when nothing is new in it: what was added last is dialled first.
        self._host.add_addresses(peer, signed.addresses)
        if not set(signed.addresses) <= set(hearsay):
            self._contacts.health.revived(peer)  # whatever failed before was another address
        return list(dict.fromkeys([*signed.addresses, *hearsay]))
