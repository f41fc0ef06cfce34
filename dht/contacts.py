"""The peers this node deals with: routing table and health, kept in step with what happens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import msgpack
import trio

from ..errors import FormatError
from .backend import NEVER, Row, RowKind, RowWriter
from .counters import Counters
from .diversity import network_group
from .health import PeerHealth
from .host import Host
from .kad_wire import MAX_ADDRESSES_PER_PEER, PeerAddresses
from .peer_id import PeerId
from .plain_msgpack import unpack
from .routing_table import RoutingTable


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """A peer we know. `rtt` in seconds; `last_seen` in seconds ago, None: not since the start."""

    peer: PeerId
    addresses: tuple[str, ...]
    rtt: float | None
    last_seen: float | None
    connected: bool


class PeerWatcher(Protocol):
    """Wants to know what becomes of peers; knows members besides those of the routing table."""

    @property
    def members(self) -> frozenset[PeerId]: ...

    def answered(self, peer: PeerId) -> None:
        """`peer` answered one of our requests."""
        ...

    def lost(self, peer: PeerId) -> None:
        """`peer` failed to answer so often that we do not count on it any more."""
        ...

    def save(self) -> None:
        """What is known of peers is being saved."""
        ...


class Contacts:
    """What every RPC, inbound or outbound, teaches about peers ends up here."""

    def __init__(self, host: Host, k: int, rows: RowWriter, counters: Counters) -> None:
        self.table = RoutingTable(host.peer_id, k)
        self.health = PeerHealth()
        self._host = host
        self._rows = rows
        self._counters = counters
        self._restored: set[PeerId] = set()
        self._saved: dict[PeerId, tuple[str, ...]] = {}
        """Where the saved rows of the table say that peers listen."""
        self._watcher: PeerWatcher | None = None

    def watch(self, watcher: PeerWatcher) -> None:
        """Tell `watcher` from now on."""
        self._watcher = watcher

    def answered(self, peer: PeerId, rtt: float | None) -> None:
        """`peer` answered one of our DHT requests: it lives and speaks the protocol."""
        now = trio.current_time()
        self.health.succeeded(peer, now, rtt)
        self._restored.discard(peer)
        if not self.table.seen(peer, now, self._group(peer)):
            self._counters.add("table_full")
        if self._watcher is not None:
            self._watcher.answered(peer)

    def failed(self, peer: PeerId, *, weight: int = 1) -> None:
        """`peer` did not answer in time, or (`weight` 2) answered nonsense."""
        self.health.failed(peer, trio.current_time(), weight=weight)
        self.table.demote(peer)
        if self.health.should_evict(peer):
            self._evict(peer)

    def disconnected(self, peer: PeerId) -> None:
        """The last connection to `peer` is gone: kept, unless there is no way back to it."""
        if not self._host.known_addresses(peer):
            self._evict(peer)

    def departed(self, peer: PeerId) -> None:
        """`peer` said goodbye, signed."""
        self._counters.add("peers_departed")
        self._forget(peer)

    def is_met(self, peer: PeerId) -> bool:
        """Whether `peer` has dealt with us in this run, and has not been lost since."""
        met = peer in self.table and peer not in self._restored
        return met or peer in self._host.connected_peers()

    def is_down(self, peer: PeerId) -> bool:
        return self.health.is_down(peer, trio.current_time())

    def learn(self, peers: Iterable[PeerAddresses]) -> list[PeerId]:
        """Remember addresses others told us; returns the peers, without ourselves."""
        out: list[PeerId] = []
        own, known_addresses = self._host.peer_id, self._host.known_addresses
        for entry in peers:
            if entry.peer == own:
                continue
            known = known_addresses(entry.peer)
            # Mostly it is what we know, and in the same order.
            if known != list(entry.addresses) and not set(entry.addresses) <= set(known):
                self._host.add_addresses(entry.peer, entry.addresses)
            out.append(entry.peer)
        return out

    def describe(self, peers: Iterable[PeerId]) -> tuple[PeerAddresses, ...]:
        """`peers` with the addresses we know, to tell others; ourselves included when asked."""
        return tuple(PeerAddresses(peer, self._addresses(peer)) for peer in peers)

    def own_addresses(self) -> tuple[str, ...]:
        """Where we listen."""
        return self._addresses(self._host.peer_id)

    def entries(self) -> list[PeerEntry]:
        """Everybody known: the routing table and, with a full map, all other members."""
        now = trio.current_time()
        connected = self._host.connected_peers()
        others = frozenset() if self._watcher is None else self._watcher.members
        peers = [*self.table, *sorted(others.difference(self.table))]
        return [self._entry(peer, now, peer in connected) for peer in peers]

    def _entry(self, peer: PeerId, now: float, connected: bool) -> PeerEntry:
        seen = None if peer in self._restored else self.table.last_seen(peer)
        return PeerEntry(
            peer,
            self._addresses(peer),
            self.health.rtt(peer),
            None if seen is None else now - seen,
            connected,
        )

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        if peer == self._host.peer_id:
            return tuple(self._host.addresses()[:MAX_ADDRESSES_PER_PEER])
        return tuple(self._host.known_addresses(peer)[:MAX_ADDRESSES_PER_PEER])

    def _evict(self, peer: PeerId) -> None:
        if peer in self.table:
            self._counters.add("peers_evicted")
        self._forget(peer)
        if self._watcher is not None:
            self._watcher.lost(peer)

    def _forget(self, peer: PeerId) -> None:
        if peer in self.table:
            self._rows.delete(RowKind.PEER, bytes(peer), b"")
            self._saved.pop(peer, None)
        self.table.evict(peer)

    def group(self, peer: PeerId) -> str | None:
        """The public network `peer` is in, if any."""
        return network_group(self._host.known_addresses(peer))

    def _group(self, peer: PeerId) -> str | None:
        """The network of a peer that is not in the table yet: once there, it stays."""
        return None if peer in self.table else self.group(peer)

    # --- across restarts ----------------------------------------------------------------------

    def save(self) -> None:
        """Hand the routing table to the backend: addresses and last RTT of every member."""
        if self._watcher is not None:
            self._watcher.save()
        self._saved.clear()
        for peer in self.table:
            self._save(peer, self._addresses(peer))

    def remember(self, peer: PeerId) -> None:
        """Save one peer of the table now, if it is new there or listens elsewhere.

        After a sudden end it may be the only way back into the mesh.
        """
        addresses = self._addresses(peer)
        if peer in self.table and self._saved.get(peer) != addresses:
            self._save(peer, addresses)

    def _save(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if addresses:
            value: bytes = msgpack.packb([list(addresses), self.health.rtt(peer)])
            self._rows.save(RowKind.PEER, bytes(peer), b"", value, NEVER)
            self._saved[peer] = addresses

    def restore(self, rows: Iterable[Row]) -> list[PeerId]:
        """Take over peers of an earlier run; returns them. Rows that make no sense are dropped."""
        out: list[PeerId] = []
        for _, key, _, value, _ in rows:
            try:
                peer, addresses, rtt = _decode_peer_row(key, value)
            except FormatError:
                self._rows.delete(RowKind.PEER, key, b"")
                continue
            self._host.add_addresses(peer, addresses)
            if rtt is not None:
                self.health.restore_rtt(peer, rtt)
            self.table.seen(peer, trio.current_time(), self._group(peer))
            self._restored.add(peer)
            out.append(peer)
        return out


def _decode_peer_row(key: bytes, value: bytes) -> tuple[PeerId, list[str], float | None]:
    peer = PeerId.from_bytes(key)
    match unpack(value):
        case [list(addresses), (float() | None) as rtt] if rtt is None or 0 <= rtt < inf:
            texts = [text for text in addresses if isinstance(text, str)]
            return peer, texts, rtt
    raise FormatError(f"The saved row of {peer.short} has an unknown shape.")
