"""A mesh of many nodes in one process: the real DHT code over simulated hosts."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache

import msgpack
import trio
from meshnode.dht import Dht, DhtSettings, MemoryBackend, open_dht
from meshnode.dht.backend import NEVER, Row, RowKind
from meshnode.dht.keyspace import BITS, PeerIndex, peer_position
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.sim import SimHost, SimLink, SimNetwork, open_sim_network

from .clock import wall_clock
from .quick import QuickHost

LATENCY = 0.02
"""Seconds one way between any two nodes."""
_TICK = 0.01
_JOIN_AT_ONCE = 20


@dataclass(slots=True, eq=False)
class LabNode:
    """One machine: its identity and disk outlive its process."""

    signer: Identity
    address: str
    backend: MemoryBackend = field(default_factory=MemoryBackend)
    host: SimHost | None = None
    running: Dht | None = None
    end: trio.CancelScope | None = None
    stopping: trio.Event | None = None
    ended: trio.Event | None = None

    @property
    def peer(self) -> PeerId:
        return self.signer.peer_id

    @property
    def dht(self) -> Dht:
        assert self.running is not None, f"{self.peer.short} is down"
        return self.running

    @property
    def is_up(self) -> bool:
        return self.running is not None


class Lab:
    """The nodes of one simulated mesh, up or down."""

    def __init__(
        self, nursery: trio.Nursery, network: SimNetwork, settings: DhtSettings, seed: int
    ) -> None:
        self.network = network
        self.settings = settings
        self.rng = random.Random(seed)
        self.nodes: list[LabNode] = []
        self._nursery = nursery
        self._ended_stats: Counter[str] = Counter()
        self._ended_bytes = 0

    # --- nodes --------------------------------------------------------------------------------

    def add(self, signer: Identity | None = None) -> LabNode:
        """A machine that has never run."""
        signer = signer or Identity.from_seed(self.rng.randbytes(32))
        number = len(self.nodes) + 1
        address = f"/ip4/10.{number >> 16}.{number >> 8 & 255}.{number & 255}/tcp/4001"
        node = LabNode(signer, address)
        self.nodes.append(node)
        return node

    async def start(self, node: LabNode, seeds: Iterable[LabNode] = ()) -> None:
        """Start the process; it joins by way of `seeds`, or with what it remembers."""
        assert not node.is_up
        await self._nursery.start(self._live, node)
        assert node.host is not None
        found = list(seeds)
        for seed in found:
            node.host.add_addresses(seed.peer, [seed.address])
        if found:
            await node.dht.bootstrap([seed.peer for seed in found])

    async def _live(self, node: LabNode, *, task_status: trio.TaskStatus[None]) -> None:
        host = self.network.add_host(node.peer, address=node.address, kind=QuickHost)
        assert isinstance(host, QuickHost)
        node.host = host
        node.end, node.stopping, node.ended = trio.CancelScope(), trio.Event(), trio.Event()
        rng = random.Random(self.rng.random())
        with node.end:
            async with open_dht(
                host,
                node.backend,
                self.settings,
                wall_clock=wall_clock,
                rng=rng,
                # Without a map nodes would publish peer records: a thousand that start at once are
                # busy for minutes with all the connections that takes.
                signer=node.signer if self.settings.map_members else None,
            ) as dht:
                host.serve_quickly(dht)
                node.running = dht
                task_status.started()
                await node.stopping.wait()
                self._note_end(node, dht)
        self.network.kill(node.peer)
        node.ended.set()

    def kill(self, node: LabNode) -> None:
        """End the process as a power cut would; its disk stays."""
        assert node.end is not None
        self._note_end(node, node.dht)
        self.network.kill(node.peer)
        node.end.cancel()

    async def stop(self, node: LabNode) -> None:
        """End the process in order."""
        assert node.stopping is not None
        assert node.ended is not None
        node.stopping.set()
        await node.ended.wait()

    def _note_end(self, node: LabNode, dht: Dht) -> None:
        self._ended_stats.update(dht.stats())
        assert node.host is not None
        self._ended_bytes += node.host.bytes_sent
        node.running = None

    # --- whole meshes -------------------------------------------------------------------------

    async def join(self, count: int) -> None:
        """Start `count` new nodes, some at a time, that know nobody but one that is up."""
        await self.join_all([self.add() for _ in range(count)])

    async def join_all(self, nodes: Sequence[LabNode]) -> None:
        """As `join`, for nodes that are there already."""
        fresh = list(nodes)
        if not any(node.is_up for node in self.nodes):
            await self.start(fresh.pop(0))
        while fresh:
            up = self.up()
            group, fresh = fresh[:_JOIN_AT_ONCE], fresh[_JOIN_AT_ONCE:]
            async with trio.open_nursery() as nursery:
                for node in group:
                    nursery.start_soon(self.start, node, [self.rng.choice(up)])

    async def warm_start(self, nodes: Sequence[LabNode]) -> None:
        """Start nodes that have met before: each remembers k random peers per bucket."""
        for node, remembered in self._tables(nodes):
            for row in remembered:
                node.backend.rows[row[:3]] = row
            await self.start(node)

    async def settle(self, nodes: Sequence[LabNode]) -> None:
        """Nodes that have long been up: k random peers per bucket are in each one's table.

        What a start asks of the mesh, in which a thousand nodes start at once, has been asked.
        """
        for node in nodes:
            await self.start(node)
        await trio.sleep(0.1)  # whoever knows nobody has nobody to look for
        for node, remembered in self._tables(nodes):
            parts = node.dht._parts
            parts.handover.not_new(parts.context.contacts.restore(remembered))

    def _tables(self, nodes: Sequence[LabNode]) -> Iterable[tuple[LabNode, list[Row]]]:
        kind = int(RowKind.PEER)
        for node, others in zip(nodes, _tables(nodes, self.settings.k, self.rng), strict=True):
            yield (
                node,
                [(kind, bytes(other.peer), b"", _peer_row(other), NEVER) for other in others],
            )

    # --- looking from above -------------------------------------------------------------------

    def up(self) -> list[LabNode]:
        return [node for node in self.nodes if node.is_up]

    def index(self) -> PeerIndex:
        """All that are up, for asking who is really nearest."""
        return PeerIndex(node.peer for node in self.nodes if node.is_up)

    def totals(self) -> Counter[str]:
        """The counters of all nodes, of those that ended as well; and bytes written to streams."""
        totals = Counter(self._ended_stats)
        totals["bytes"] = self._ended_bytes
        for node in self.up():
            totals.update(node.dht.stats())
            assert node.host is not None
            totals["bytes"] += node.host.bytes_sent
        return totals


@cache
def _peer_row(node: LabNode) -> bytes:
    packed: bytes = msgpack.packb([[node.address], 2 * LATENCY])
    return packed


def _tables(nodes: Sequence[LabNode], k: int, rng: random.Random) -> Iterable[list[LabNode]]:
    """For each node up to k random others per bucket: the table that time would have given it."""
    by_position = {peer_position(node.peer): node for node in nodes}
    positions = sorted(by_position)
    for node in nodes:
        own, table = peer_position(node.peer), list[LabNode]()
        for bits in range(BITS):
            span = 1 << (BITS - bits - 1)
            start = (own ^ span) & ~(span - 1)
            low, high = bisect_left(positions, start), bisect_left(positions, start + span)
            chosen = rng.sample(range(low, high), min(k, high - low))
            table += [by_position[positions[at]] for at in chosen]
            inner = own & ~(span - 1)
            if bisect_left(positions, inner + span) - bisect_left(positions, inner) <= 1:
                break
        yield table


@asynccontextmanager
async def open_lab(seed: int, settings: DhtSettings | None = None) -> AsyncIterator[Lab]:
    """An empty lab. At the end every node that is up must be free of crashes of its own tasks."""
    network = open_sim_network(seed, link=SimLink(latency=LATENCY), tick=_TICK)
    async with network as sim, trio.open_nursery() as nursery:
        lab = Lab(nursery, sim, settings or DhtSettings(), seed)
        yield lab
        totals = lab.totals()
        assert not totals["upkeep_crashes"], f"seed {seed}"
        assert not totals["questions_crashed"], f"seed {seed}"
        nursery.cancel_scope.cancel()
