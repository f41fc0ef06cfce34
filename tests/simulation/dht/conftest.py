"""A mesh of DHT nodes over simulated hosts, on the virtual clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import msgpack
import pytest
import trio
from meshnode.dht import Dht, DhtSettings, MemoryBackend, open_dht
from meshnode.dht.backend import NEVER, RowKind
from meshnode.dht.keyspace import common_bits, peer_position, position
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.sim import SimHost, SimLink, SimNetwork, open_sim_network

EPOCH = 1_800_000_000.0


def wall_clock() -> float:
    """Unix time that follows the virtual clock."""
    return EPOCH + trio.current_time()


def _peer_row(host: SimHost) -> bytes:
    packed: bytes = msgpack.packb([host.addresses(), 0.02])
    return packed


@dataclass
class MeshNode:
    host: SimHost
    dht: Dht
    backend: MemoryBackend
    stopping: trio.Event
    stopped: trio.Event

    @property
    def peer(self) -> PeerId:
        return self.host.peer_id


class Mesh:
    """Nodes that know each other through the first one.

    With `full_map` they sign peer records, as real nodes do, and keep a map of all members.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        network: SimNetwork,
        settings: DhtSettings,
        *,
        full_map: bool = False,
    ) -> None:
        self._nursery = nursery
        self.network = network
        self.settings = settings
        self.nodes: list[MeshNode] = []
        self._full_map = full_map
        self._signers: dict[PeerId, Identity] = {}
        self._keys = random.Random(len("keys"))

    def add_host(self, peer: PeerId | None = None) -> SimHost:
        """A new host of the network, with a key of its own when the mesh has a full map."""
        if peer is None and self._full_map:
            signer = Identity.from_seed(self._keys.randbytes(32))
            peer = signer.peer_id
            self._signers[peer] = signer
        return self.network.add_host(peer)

    def signer(self, peer: PeerId) -> Identity | None:
        return self._signers.get(peer)

    async def add(
        self,
        *,
        settings: DhtSettings | None = None,
        backend: MemoryBackend | None = None,
        peer: PeerId | None = None,
        bootstrap: bool = True,
    ) -> MeshNode:
        host = self.add_host(peer)
        node: MeshNode = await self._nursery.start(
            self._live, host, backend or MemoryBackend(), settings or self.settings
        )
        if bootstrap and self.nodes:
            first = self.nodes[0].host
            host.add_addresses(first.peer_id, first.addresses())
            await node.dht.bootstrap([first.peer_id])
        self.nodes.append(node)
        return node

    async def _live(
        self,
        host: SimHost,
        backend: MemoryBackend,
        settings: DhtSettings,
        *,
        task_status: trio.TaskStatus[MeshNode],
    ) -> None:
        rng = random.Random(len(self.nodes))
        node_stopped = trio.Event()
        async with open_dht(
            host,
            backend,
            settings,
            wall_clock=wall_clock,
            rng=rng,
            signer=self.signer(host.peer_id),
        ) as dht:
            node = MeshNode(host, dht, backend, trio.Event(), node_stopped)
            task_status.started(node)
            await node.stopping.wait()
        node_stopped.set()

    async def grow(self, count: int) -> None:
        while len(self.nodes) < count:
            await self.add()
        await trio.sleep(5)

    async def populate(self, count: int) -> None:
        """Start `count` nodes that have met before: each with k random peers per bucket saved."""
        hosts = [self.add_host() for _ in range(count)]
        rng = random.Random(count)
        for host in hosts:
            buckets: dict[int, list[SimHost]] = {}
            for other in rng.sample(hosts, count):
                bits = common_bits(peer_position(host.peer_id), peer_position(other.peer_id))
                buckets.setdefault(bits, []).append(other)
            backend = MemoryBackend()
            for bits, members in buckets.items():
                await backend.save(
                    [
                        (int(RowKind.PEER), bytes(m.peer_id), b"", _peer_row(m), NEVER)
                        for m in members[: self.settings.k]
                        if bits < 256
                    ]
                )
            self.nodes.append(await self._nursery.start(self._live, host, backend, self.settings))
        await trio.sleep(30)

    async def stop(self, node: MeshNode) -> None:
        """An orderly end: what is pending is saved, then the connections break."""
        self.nodes.remove(node)
        node.stopping.set()
        await node.stopped.wait()
        self.network.kill(node.peer)

    def kill(self, node: MeshNode) -> None:
        """A sudden end, as seen by the others."""
        self.nodes.remove(node)
        self.network.kill(node.peer)

    def nearest(self, key: bytes, count: int, *, without: MeshNode) -> list[PeerId]:
        """The true nearest peers of a key, by looking at all of them."""
        target = position(key)
        others = [node.peer for node in self.nodes if node is not without]
        return sorted(others, key=lambda peer: peer_position(peer) ^ target)[:count]


@asynccontextmanager
async def open_mesh(
    count: int,
    *,
    settings: DhtSettings | None = None,
    seed: int = 1,
    latency: float = 0.01,
    full_map: bool = False,
    limits: HostLimits | None = None,
) -> AsyncIterator[Mesh]:
    link = SimLink(latency=latency)
    async with (
        open_sim_network(seed=seed, link=link, limits=limits) as network,
        trio.open_nursery() as nursery,
    ):
        mesh = Mesh(nursery, network, settings or DhtSettings(), full_map=full_map)
        await mesh.grow(count)
        yield mesh
        assert not [node for node in mesh.nodes if "upkeep_crashes" in node.dht.stats()]
        nursery.cancel_scope.cancel()


MeshOpener = Callable[..., AbstractAsyncContextManager[Mesh]]


@pytest.fixture
def mesh_of() -> MeshOpener:
    """`async with mesh_of(5) as mesh`: a mesh; the test must ask for `autojump_clock` too."""
    return open_mesh
