"""A mesh of real stores, chunk servers, exchanges and DHTs over simulated hosts."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from meshnode.config import load_config
from meshnode.dht import Dht, DhtSettings, MemoryBackend, open_dht
from meshnode.dht.peer_id import PeerId
from meshnode.node.exchange import (
    ChunkServer,
    Exchange,
    Kept,
    PeerInfo,
    open_exchange,
    open_traffic,
)
from meshnode.node.identity import Identity
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Getter, Member, Putter, TransferContext
from meshnode.node.transport.sim import SimHost, SimLink, SimNetwork, open_sim_network

EPOCH = 1_800_000_000.0


def wall_clock() -> float:
    return EPOCH + trio.current_time()


@dataclass
class SimNode:
    host: SimHost
    store: MemoryStore
    exchange: Exchange
    dht: Dht
    zone: str
    context: TransferContext

    @property
    def peer(self) -> PeerId:
        return self.host.peer_id

    @property
    def putter(self) -> Putter:
        return Putter(self.context)

    @property
    def getter(self) -> Getter:
        return Getter(self.context)


class Zones:
    """Everybody connected, with the zone of each."""

    def __init__(self, host: SimHost, zone_of: dict[PeerId, str]) -> None:
        self._host = host
        self._zone_of = zone_of

    def members(self) -> list[Member]:
        return [
            Member(peer, self._zone_of[peer], None, 0.0)
            for peer in sorted(self._host.connected_peers())
        ]


class SimMesh:
    def __init__(self, network: SimNetwork, home: Path) -> None:
        self.network = network
        self.nodes: list[SimNode] = []
        self._zone_of: dict[PeerId, str] = {}
        self._home = home

    async def start(self, stack: AsyncExitStack, zone: str) -> None:
        number = len(self.nodes)
        identity = Identity.from_seed(bytes([number + 1]) * 32)
        host = self.network.add_host(identity.peer_id)
        self._zone_of[host.peer_id] = zone
        store = MemoryStore()
        dht = await stack.enter_async_context(
            open_dht(
                host,
                MemoryBackend(),
                DhtSettings(zone=zone),
                wall_clock=wall_clock,
                rng=random.Random(number),
            )
        )

        async def info() -> PeerInfo:
            return PeerInfo(f"node{number}", zone, 1 << 40, "0", 0)

        async def on_stored(kept: Kept) -> None:
            await dht.announce([(kept.digest, kept.size)])

        traffic = await stack.enter_async_context(open_traffic())
        server = ChunkServer(
            host,
            store,
            identity=identity,
            info_provider=info,
            on_stored=on_stored,
            wall=wall_clock,
            traffic=traffic,
        )
        await stack.enter_async_context(server.serving())
        exchange = await stack.enter_async_context(
            open_exchange(host, identity=identity, traffic=traffic)
        )
        config = load_config(self._home, env={}).with_overrides({"ingest.chunk_size": 65536})
        context = TransferContext(
            store=store,
            exchange=exchange,
            dht=dht,
            membership=Zones(host, self._zone_of),
            self_id=host.peer_id,
            config=config,
            convergence_secret=b"\x07" * 32,
            zone=zone,
            rng=random.Random(number),
        )
        self.nodes.append(SimNode(host, store, exchange, dht, zone, context))

    async def meet(self) -> None:
        """Everybody connects to everybody, and finds its place in the DHT."""
        self.network.introduce()
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    await node.host.connect(other.peer)
        for node in self.nodes:
            await node.dht.bootstrap([other.peer for other in self.nodes if other is not node])

    def holders(self, digest: bytes) -> list[SimNode]:
        return [node for node in self.nodes if digest in node.store._chunks]


OpenMesh = Callable[..., AbstractAsyncContextManager[SimMesh]]


@pytest.fixture
def open_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenMesh:
    # Thread work is done in place: the virtual clock would jump ahead while a thread is busy.
    async def run_sync(work: Callable[..., object], *args: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    home = tmp_path / "home"
    home.mkdir()

    @asynccontextmanager
    async def opened(
        zones: list[str], *, latency: float = 0.005, bandwidth: float = 20e6
    ) -> AsyncIterator[SimMesh]:
        link = SimLink(latency=latency, bandwidth=bandwidth)
        async with open_sim_network(seed=3, link=link) as network, AsyncExitStack() as stack:
            mesh = SimMesh(network, home)
            for zone in zones:
                await mesh.start(stack, zone)
            await mesh.meet()
            yield mesh

    return opened
