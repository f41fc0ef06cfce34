"""A mesh of pretended peers: real stores and statistics, faults to order, trio's virtual clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from meshnode.config import load_config
from meshnode.dht.peer_id import PeerId
from meshnode.errors import (
    IntegrityError,
    NotFoundError,
    PeerError,
    PeerRefusedError,
    StoreError,
)
from meshnode.node.exchange import Lane, Receipt
from meshnode.node.exchange.pending import Arrival
from meshnode.node.exchange.stats import PeerStatsTable
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Getter, Member, Putter, TransferContext
from meshnode.node.transfer.trace import Trace

SECRET = b"\x07" * 32


def peer_id(number: int) -> PeerId:
    return PeerId.from_ed25519(random.Random(number).randbytes(32))


@dataclass
class Peer:
    """One pretended peer and what is wrong with it."""

    id: PeerId
    zone: str
    store: MemoryStore = field(default_factory=MemoryStore)
    latency: float = 0.01
    rate: float = 100e6
    down: bool = False
    frozen: bool = False
    corrupting: bool = False
    forgetful: bool = False
    """Gives receipts and keeps nothing."""
    refuses_puts: str = ""
    most_at_once: int | None = None
    """Requests it serves side by side; it tells the others to come back."""
    serving: int = 0
    fails_next: int = 0
    """So many requests break before one goes through."""
    gets: list[bytes] = field(default_factory=list)
    puts: list[bytes] = field(default_factory=list)
    haves: list[int] = field(default_factory=list)
    """How many digests each HAVE asked for."""
    line: trio.Lock | None = None
    """What the bodies of puts share, one after the other; None: each has `rate` for itself."""
    disk: float = 0.0
    """Seconds from having the bytes of a chunk to having it on the disk."""
    die_after_gets: int | None = None


def receipt_of(peer: PeerId, digest: bytes, size: int) -> Receipt:
    return Receipt(peer, peer_id(0), digest, size, 1_000, 1_000 + 30 * 86_400, b"s" * 64)


class FakeExchange:
    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh
        self.forget_statistics()
        self.in_flight: list[bytes] = []
        self.most_in_flight = 0
        self.most_puts = 0
        self.putting: list[bytes] = []
        self.put_lanes: Counter[Lane] = Counter()
        self.fail_gets = 0
        self.started: list[bytes] = []
        self.in_flight_when_started: list[int] = []

    def forget_statistics(self) -> None:
        self.stats = PeerStatsTable(clock=trio.current_time, wall=trio.current_time)

    async def _reach(self, peer: PeerId, first_byte_timeout: float | None) -> Peer:
        found = self._mesh.peers[peer]
        if found.frozen:
            wait = 60.0 if first_byte_timeout is None else first_byte_timeout
            await trio.sleep(wait)
            self.stats.of(peer).failed("silent")
            raise PeerError(f"Peer {peer.short} was silent for {wait:g} s.")
        await trio.sleep(found.latency)
        if found.down or found.fails_next:
            found.fails_next = max(found.fails_next - 1, 0)
            self.stats.of(peer).failed("down")
            raise PeerError(f"Peer {peer.short} is unreachable.")
        if found.most_at_once is not None and found.serving >= found.most_at_once:
            self.stats.of(peer).refused()
            raise PeerRefusedError("Peer refused: busy.", reason="busy", retry_after=0.25)
        self.stats.of(peer).first_byte(found.latency)
        return found

    async def have(
        self, peer: PeerId, digests: Sequence[bytes], *, first_byte_timeout: float | None = None
    ) -> list[bool]:
        found = await self._reach(peer, first_byte_timeout)
        found.haves.append(len(digests))
        return await found.store.has(digests)

    async def get_unverified(
        self,
        peer: PeerId,
        digest: bytes,
        offset: int = 0,
        length: int | None = None,
        *,
        first_byte_timeout: float | None = None,
        arrival: Arrival | None = None,
        into: Callable[[], memoryview] | None = None,
    ) -> bytes | memoryview:
        self._enter(digest)
        found = None
        try:
            found = await self._reach(peer, first_byte_timeout)
            if arrival is not None:
                arrival.update(0)
            found.serving += 1
            found.gets.append(digest)
            if self.fail_gets:
                self.fail_gets -= 1
                raise PeerError(f"Peer {peer.short} broke off.")
            try:
                data = await found.store.get(digest)
            except NotFoundError as error:
                raise PeerRefusedError("Peer refused: not_found.", reason="not_found") from error
            end = len(data) if length is None else offset + length
            download = self.stats.of(peer).download
            download.began()
            try:
                await trio.sleep((end - offset) / found.rate)
            finally:
                download.ended(end - offset)
            self.stats.of(peer).succeeded()
            if found.die_after_gets is not None and len(found.gets) >= found.die_after_gets:
                found.down = True
            part = data[offset:end]
            if found.corrupting:
                part = bytes([part[0] ^ 1]) + part[1:]
            if into is None:
                return part
            memory = into()
            memory[:] = part
            return memory
        finally:
            self.in_flight.remove(digest)
            if found is not None:
                found.serving -= 1

    def hold_up(self, size: int, *, upload: bool = False) -> float:
        return 0.0

    def corrupt(self, peer: PeerId, digest: bytes) -> IntegrityError:
        self.stats.of(peer).corrupted("sent a corrupt chunk")
        return IntegrityError(f"Peer {peer.short} sent a corrupt chunk.")

    async def put(
        self,
        peer: PeerId,
        digest: bytes,
        data: bytes,
        *,
        first_byte_timeout: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Receipt:
        self.putting.append(digest)
        self.put_lanes[lane] += 1
        self.most_puts = max(self.most_puts, len(set(self.putting)))
        on_the_wire = True
        try:
            found = await self._reach(peer, first_byte_timeout)
            if found.refuses_puts:
                raise PeerRefusedError("Peer refused.", reason=found.refuses_puts)
            if not (await found.store.has([digest]))[0]:
                found.serving += 1
                upload = self.stats.of(peer).upload
                upload.began()
                self.stats.of(peer).began(len(data))
                try:
                    async with found.line or trio.Semaphore(1):
                        await trio.sleep(len(data) / found.rate)
                    self.putting.remove(digest)
                    on_the_wire = False
                    if on_sent is not None:
                        on_sent()
                    await trio.sleep(found.disk)
                finally:
                    found.serving -= 1
                    self.stats.of(peer).ended(len(data))
                    upload.ended(len(data))
                found.puts.append(digest)
            if not found.forgetful:
                await found.store.put([(digest, bytes(data))])
            self.stats.of(peer).succeeded()
            return receipt_of(peer, digest, len(data))
        finally:
            if on_the_wire:
                self.putting.remove(digest)

    def _enter(self, digest: bytes) -> None:
        self.started.append(digest)
        self.in_flight_when_started.append(1 + len(self.in_flight))
        self.in_flight.append(digest)
        self.most_in_flight = max(self.most_in_flight, len(set(self.in_flight)))


@dataclass(frozen=True)
class Record:
    peer: PeerId


@dataclass(frozen=True)
class StoredOn:
    stored_on: tuple[PeerId, ...]


class FakeDht:
    """Knows what everybody announced, at once."""

    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh
        self.manifests: dict[bytes, bytes] = {}
        self.announced: list[tuple[bytes, int]] = []
        self.announcements = 0
        self.finds: list[int] = []
        self.knows_chunks = True

    async def announce(self, chunks: Sequence[tuple[bytes, int]]) -> object:
        await trio.sleep(0.01)
        self.announcements += 1
        self.announced += chunks
        return object()

    async def find_chunks(self, digests: Sequence[bytes]) -> dict[bytes, list[Record]]:
        await trio.sleep(0.01)
        self.finds.append(len(digests))
        found: dict[bytes, list[Record]] = {digest: [] for digest in digests}
        if self.knows_chunks:
            for peer in self._mesh.peers.values():
                held = await peer.store.has(digests)
                for digest, here in zip(digests, held, strict=True):
                    if here:
                        found[digest].append(Record(peer.id))
        return found

    async def put_manifest(self, digest: bytes, value: bytes) -> StoredOn:
        await trio.sleep(0.01)
        self.manifests[digest] = value
        return StoredOn(tuple(self._mesh.peers))

    async def get_manifest(self, digest: bytes) -> bytes | None:
        await trio.sleep(0.01)
        return self.manifests.get(digest)


class FakeJournal:
    """Remembers what was written down; `crash` takes the rest."""

    def __init__(self) -> None:
        self.written: dict[tuple[bytes, PeerId], Receipt] = {}
        self.noted: list[Receipt] = []
        self.held: set[bytes] = set()
        self.asked: list[int] = []
        self.flushes = 0
        self.broken = False

    def stored(self, digests: Sequence[bytes]) -> None:
        self.held.update(digests)

    def copied(self, receipt: Receipt) -> None:
        self.noted.append(receipt)

    async def receipts(self, digests: Sequence[bytes]) -> dict[bytes, list[Receipt]]:
        await trio.lowlevel.checkpoint()
        self.asked.append(len(digests))
        found: dict[bytes, list[Receipt]] = {}
        for (digest, _), receipt in self.written.items():
            if digest in digests:
                found.setdefault(digest, []).append(receipt)
        return found

    async def lost(self, peer: PeerId, digests: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        for digest in digests:
            self.written.pop((digest, peer), None)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1
        if self.broken:
            raise StoreError("the disk failed")
        self.written |= {(r.digest, r.holder): r for r in self.noted}
        self.noted.clear()

    def crash(self) -> None:
        self.noted.clear()


class FakeMesh:
    """This node, and the peers around it."""

    def __init__(self, home: Path) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self.config = load_config(home, env={}).with_overrides({"ingest.chunk_size": 65536})
        # Tests that break off, kill or count part of the way know how far that is.
        self.configure(max_concurrent_retrievals=8, max_concurrent_uploads=4)
        self.store = MemoryStore()
        self.exchange = FakeExchange(self)
        self.dht = FakeDht(self)
        self.journal = FakeJournal()
        self.traces: list[Trace] = []
        self.self_id = peer_id(0)

    def add(self, zone: str = "default", **faults: object) -> Peer:
        peer = Peer(peer_id(len(self.peers) + 1), zone)
        for name, value in faults.items():
            assert hasattr(peer, name)
            setattr(peer, name, value)
        self.peers[peer.id] = peer
        return peer

    def configure(self, **values: object) -> None:
        """Set keys of `[performance.chunks]`."""
        self.config = self.config.with_overrides(
            {f"performance.chunks.{name}": value for name, value in values.items()}
        )

    def members(self) -> list[Member]:
        return [Member(peer.id, peer.zone, None, 0.0) for peer in self.peers.values()]

    def context(self, store: MemoryStore | None = None) -> TransferContext:
        return TransferContext(
            store=store or self.store,
            exchange=self.exchange,
            dht=self.dht,
            membership=self,
            self_id=self.self_id,
            config=self.config,
            convergence_secret=SECRET,
            zone="default",
            rng=random.Random(1),
            journal=self.journal,
            traces=self,
        )

    async def keep(self, trace: Trace) -> None:
        """A trace keeper: everything that was ever done."""
        await trio.lowlevel.checkpoint()
        self.traces.append(trace)

    def putter(self) -> Putter:
        return Putter(self.context())

    def putter_getter(self) -> Getter:
        """Of the node that put, which has everything."""
        return Getter(self.context())

    def getter(self) -> Getter:
        """Of a node that holds nothing itself."""
        return Getter(self.context(MemoryStore()))


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread work done in place: the virtual clock would jump ahead while a thread is busy."""

    async def run_sync(work: Callable[..., object], *args: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def mesh(tmp_path: Path, inline_threads: None) -> FakeMesh:
    home = tmp_path / "home"
    home.mkdir()
    return FakeMesh(home)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    def make(size: int, name: str = "input.bin", seed: int = 1) -> Path:
        path = tmp_path / name
        path.write_bytes(random.Random(seed).randbytes(size))
        return path

    return make
