"""Two nodes on a simulated network: one serves a store in memory, one asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
import trio
from blake3 import blake3
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from meshnode.node.exchange import (
    PROTOCOL,
    ChunkServer,
    Exchange,
    ExchangeSettings,
    Kept,
    PeerInfo,
    ServerLimits,
    Traffic,
    open_exchange,
    open_traffic,
)
from meshnode.node.exchange.messages import Answer, Message
from meshnode.node.exchange.wire import (
    PREFIX_BYTES,
    decode_answer,
    decode_request,
    encode,
    header_rest,
)
from meshnode.node.identity import Identity
from meshnode.node.store import Buffer, Digest, MemoryStore
from meshnode.node.transport.sim import SimHost, SimLink, SimNetwork, open_sim_network
from meshnode.node.transport.streams import BufferedStream


class GatedStore(MemoryStore):
    """A `MemoryStore` whose reads and writes a test can hold up, and whose chunks it can touch."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[Digest, trio.Event] = {}
        self.reading = 0
        self.most_reading = 0
        self.visits = 0
        self.broken = False

    @property
    def chunks(self) -> dict[Digest, bytes]:
        return self._chunks

    def set_quota(self, quota: int) -> None:
        self._quota = quota

    def add(self, data: bytes) -> Digest:
        digest = blake3(data).digest()
        self.chunks[digest] = data
        return digest

    async def _pass(self, digest: Digest) -> None:
        if self.broken:
            raise RuntimeError("the disk is gone")
        self.reading += 1
        self.most_reading = max(self.reading, self.most_reading)
        try:
            if digest in self.gates:
                await self.gates[digest].wait()
            await trio.lowlevel.checkpoint()
        finally:
            self.reading -= 1

    async def sizes(self, digests: Sequence[Digest]) -> list[int | None]:
        self.visits += 1
        return await super().sizes(digests)

    async def put(self, chunks: Sequence[tuple[Digest, Buffer]], *, verify: bool = True) -> None:
        for digest, _ in chunks:
            await self._pass(digest)
        await super().put(chunks, verify=verify)

    async def get(self, digest: Digest) -> bytes:
        self.visits += 1
        await self._pass(digest)
        return await super().get(digest)


@dataclass
class Pair:
    """A client (`exchange`, on `asking`) and a server (`server`, on `serving`, over `store`)."""

    network: SimNetwork
    asking: SimHost
    serving: SimHost
    owner: Identity
    holder: Identity
    exchange: Exchange
    server: ChunkServer
    store: GatedStore
    server_traffic: Traffic
    kept: list[Kept] = field(default_factory=list)
    """What `on_stored` was told; a release takes it out again."""

    @property
    def peer(self) -> PeerId:
        return self.serving.peer_id


OpenPair = Callable[..., AbstractAsyncContextManager[Pair]]


@asynccontextmanager
async def _open_pair(
    *,
    latency: float = 0.01,
    bandwidth: float = float("inf"),
    window: int = 256 * 1024,
    settings: ExchangeSettings | None = None,
    limits: ServerLimits | None = None,
) -> AsyncIterator[Pair]:
    holder, owner = Identity.from_seed(b"h" * 32), Identity.from_seed(b"o" * 32)
    link = SimLink(latency=latency, bandwidth=bandwidth, window=window)
    async with open_sim_network(seed=1, link=link) as network, open_traffic() as traffic:
        serving, asking = network.add_host(holder.peer_id), network.add_host(owner.peer_id)
        network.introduce()
        store = GatedStore()
        kept: list[Kept] = []

        async def info() -> PeerInfo:
            return PeerInfo("attic", "home", 12345, "1.2.3", len(store.chunks))

        async def on_stored(chunk: Kept) -> None:
            assert chunk.digest in store.chunks
            kept.append(chunk)

        async def on_release(owner: PeerId, digests: Sequence[Digest]) -> int:
            gone = [k for k in kept if k.owner == owner and k.digest in digests]
            for chunk in gone:
                kept.remove(chunk)
            return len(gone)

        server = ChunkServer(
            serving,
            store,
            identity=holder,
            info_provider=info,
            limits=limits,
            on_stored=on_stored,
            on_release=on_release,
            wall=lambda: 1_700_000_000.5,
            traffic=traffic,
        )
        async with (
            server.serving(),
            open_exchange(asking, identity=owner, settings=settings) as exchange,
        ):
            await asking.connect(serving.peer_id)
            yield Pair(
                network, asking, serving, owner, holder, exchange, server, store, traffic, kept
            )


@pytest.fixture
def open_pair() -> OpenPair:
    return _open_pair


class RawPeer:
    """Speaks the protocol by hand over one stream, as rightly or wrongly as a test wants."""

    def __init__(self, stream: Stream) -> None:
        self.stream = BufferedStream(stream)

    async def send(self, message: Message, body: bytes = b"") -> None:
        await self.stream.write(encode(message) + body)

    async def _header(self, *, request: bool) -> bytes:
        prefix = await self.stream.read_exactly(PREFIX_BYTES)
        rest = header_rest(prefix, request=request)
        return prefix[4:] + await self.stream.read_exactly(rest)

    async def answer(self) -> Answer:
        return decode_answer(await self._header(request=False))

    async def request(self) -> Message:
        return decode_request(await self._header(request=True))

    async def body(self, size: int) -> bytes:
        return await self.stream.read_exactly(size)


@pytest.fixture
def speak_to() -> Callable[[Pair], object]:
    """Open a raw stream from the asking host to the real server."""

    async def speak(pair: Pair) -> RawPeer:
        return RawPeer(await pair.asking.open_stream(pair.peer, PROTOCOL))

    return speak


@pytest.fixture
def serve_by_hand() -> Callable[[Pair, Callable[[RawPeer], object]], None]:
    """Replace the real server by a coroutine function that is given each `RawPeer`."""

    def replace(pair: Pair, script: Callable[[RawPeer], object]) -> None:
        async def handler(stream: Stream) -> None:
            await script(RawPeer(stream))  # type: ignore[misc]

        pair.serving.set_handler(PROTOCOL, handler)

    return replace


@pytest.fixture
def chunk_of() -> Callable[..., bytes]:
    def make(size: int, seed: int = 0) -> bytes:
        return Random(seed).randbytes(size)

    return make


@pytest.fixture(autouse=True)
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of threads is done on the spot: a virtual clock does not wait for real threads, and
    would let deadlines pass while one hashes."""

    async def run_sync(
        work: Callable[..., object], *args: object, limiter: object = None, **_: object
    ) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
