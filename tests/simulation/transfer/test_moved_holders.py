"""A holder that came back elsewhere: a get finds it though all addresses it is told are old."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from meshnode.config import load_config
from meshnode.dht import Dht, DhtSettings, MemoryBackend, open_dht
from meshnode.dht.kad_wire import PeerAddresses
from meshnode.dht.peer_id import PeerId
from meshnode.errors import MeshError
from meshnode.node.exchange import ChunkServer, PeerInfo, open_exchange, open_traffic
from meshnode.node.identity import Identity
from meshnode.node.seeker import Seeker
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Getter, Member, PutOptions, Putter, TransferContext
from meshnode.node.transport.sim import SimHost, SimNetwork, open_sim_network
from trio.testing import MockClock

from tests.simulation.transfer.conftest import wall_clock

ITERATIVE = DhtSettings(k=4, map_members=0)


class Alone:
    """No members: nobody but holders that records name can be asked for a chunk."""

    def members(self) -> list[Member]:
        return []


@dataclass
class Disk:
    """What of a node outlives its process."""

    identity: Identity
    store: MemoryStore
    records: MemoryBackend


@dataclass
class Running:
    host: SimHost
    dht: Dht
    context: TransferContext
    end: trio.CancelScope


class Mesh:
    def __init__(self, network: SimNetwork, nursery: trio.Nursery, home: Path) -> None:
        self.network = network
        self.nodes: list[Running] = []
        self._nursery = nursery
        self._config = load_config(home, env={}).with_overrides({"ingest.chunk_size": 65536})

    async def start(self, disk: Disk | None = None, *, seeks: bool = True) -> Running:
        number = len(self.nodes)
        disk = disk or Disk(
            Identity.from_seed(bytes([number + 1]) * 32), MemoryStore(), MemoryBackend()
        )
        node: Running = await self._nursery.start(self._live, disk, seeks)
        if self.nodes:
            first = self.nodes[0].host
            node.host.add_addresses(first.peer_id, first.addresses())
            await node.dht.bootstrap([first.peer_id])
        self.nodes.append(node)
        return node

    def stop(self, node: Running) -> None:
        self.nodes.remove(node)
        self.network.kill(node.host.peer_id)
        node.end.cancel()

    async def _live(
        self, disk: Disk, seeks: bool, *, task_status: trio.TaskStatus[Running]
    ) -> None:
        host = self.network.add_host(disk.identity.peer_id)
        rng = random.Random(len(self.nodes))
        with trio.CancelScope() as end:
            async with AsyncExitStack() as stack:
                dht = await stack.enter_async_context(
                    open_dht(
                        host,
                        disk.records,
                        ITERATIVE,
                        wall_clock=wall_clock,
                        rng=rng,
                        signer=disk.identity,
                    )
                )

                async def info() -> PeerInfo:
                    return PeerInfo("", "", 1 << 40, "0", 0)

                traffic = await stack.enter_async_context(open_traffic())
                server = ChunkServer(
                    host,
                    disk.store,
                    identity=disk.identity,
                    info_provider=info,
                    wall=wall_clock,
                    traffic=traffic,
                )
                await stack.enter_async_context(server.serving())
                seeker = Seeker(host, dht)
                exchange = await stack.enter_async_context(
                    open_exchange(
                        host,
                        identity=disk.identity,
                        traffic=traffic,
                        on_unreachable=seeker.unreachable if seeks else lambda _: None,
                    )
                )
                nursery = await stack.enter_async_context(trio.open_nursery())
                nursery.start_soon(seeker.run)
                context = TransferContext(
                    store=disk.store,
                    exchange=exchange,
                    dht=dht,
                    membership=Alone(),
                    self_id=host.peer_id,
                    config=self._config,
                    convergence_secret=b"\x07" * 32,
                    rng=rng,
                    search=seeker,
                )
                task_status.started(Running(host, dht, context, end))
                await trio.sleep_forever()


@asynccontextmanager
async def opened(home: Path, count: int) -> AsyncIterator[Mesh]:
    home.mkdir()
    async with open_sim_network(seed=3) as network, trio.open_nursery() as nursery:
        mesh = Mesh(network, nursery, home)
        for _ in range(count):
            await mesh.start()
        yield mesh
        nursery.cancel_scope.cancel()


def say_of(nodes: Iterable[Running], peer: PeerId, addresses: Sequence[str]) -> None:
    """Have `nodes` tell others nothing about `peer` but `addresses`."""

    def instead(describe: Callable[..., Any]) -> Callable[..., Any]:
        def told(peers: Iterable[PeerId]) -> tuple[PeerAddresses, ...]:
            return tuple(
                PeerAddresses(p.peer, tuple(addresses)) if p.peer == peer else p
                for p in describe(peers)
            )

        return told

    for node in nodes:
        node.dht._contacts.describe = instead(node.dht._contacts.describe)


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread work is done in place: the virtual clock would jump ahead while a thread is busy."""

    async def run_sync(work: Callable[..., object], *args: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.mark.parametrize("seeks", [True, False])
@pytest.mark.parametrize("told", ["its old address", "no address"])
async def test_the_only_holder_has_moved_and_is_found_by_what_it_signed(
    tmp_path: Path, autojump_clock: MockClock, told: str, seeks: bool
) -> None:
    """`seeks` false: the same without the search, so that nothing else makes it found."""
    content = random.Random(1).randbytes(300_000)
    (tmp_path / "content").write_bytes(content)
    async with opened(tmp_path / "home", 8) as mesh:
        disk = Disk(Identity.from_seed(b"m" * 32), MemoryStore(), MemoryBackend())
        moves = await mesh.start(disk)
        await trio.sleep(60)  # by then its record is published
        put = await Putter(moves.context).put([tmp_path / "content"], PutOptions(replication=1))
        old = moves.host.addresses()
        mesh.stop(moves)
        moved = await mesh.start(disk)
        assert moved.host.addresses() != old
        await trio.sleep(10)  # and so soon the one that says where it is now
        others = [node for node in mesh.nodes if node is not moved]
        say_of(others, moved.host.peer_id, old if told == "its old address" else [])
        reader = await mesh.start(seeks=seeks)
        assert moved.host.peer_id not in reader.host.connected_peers()
        link = put.sources[0].link
        getter = Getter(reader.context)
        if not seeks:
            with pytest.raises(MeshError):
                await getter.get(link, tmp_path / "got")
            return
        began = trio.current_time()
        await getter.get(link, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
        assert trio.current_time() - began < 10
        assert moved.host.peer_id in reader.host.connected_peers()
