"""Peers behind modelled links, for the real scheduler and driver on trio's virtual clock.

A peer has a round trip and a rate, and sends one body after the other in the order they were asked
for. A request that is cancelled before its body began is dropped when the peer hears of it; a body
that began is sent to its end, and what comes of it after the cancellation came for nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from blake3 import blake3
from meshnode.config import load_config
from meshnode.dht.peer_id import PeerId
from meshnode.errors import DeadlineError, IntegrityError, PeerError
from meshnode.node.content import ChunkRef, Codec
from meshnode.node.exchange import PeerStatsTable
from meshnode.node.exchange.pending import Arrival
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Member, TransferContext
from meshnode.node.transfer.download import Fetcher
from meshnode.node.transfer.events import ProgressMeter, ignore_events

CHUNK = 1 << 20
_PIECE = 64 << 10
_DATA = random.Random(7).randbytes(CHUNK)
_FALSE = bytes([_DATA[0] ^ 1]) + _DATA[1:]
_REF = ChunkRef(blake3(_DATA).digest(), None, Codec.RAW, CHUNK, CHUNK)


@dataclass
class ModelledPeer:
    """One peer and what is wrong with it."""

    id: PeerId
    rtt: float
    rate: float
    fails: float = 0.0
    """Share of requests that break after a round trip."""
    corrupts: bool = False
    stalls_after: int | None = None
    """Bytes after which it never sends anything again."""
    leaves_after: int | None = None
    """Bytes after which it is gone."""
    line: trio.Lock = field(default_factory=trio.Lock)
    sent: int = 0
    asked: int = 0
    gone: trio.Event = field(default_factory=trio.Event)

    @property
    def is_stalled(self) -> bool:
        return self.stalls_after is not None and self.sent >= self.stalls_after

    def send(self, nbytes: int) -> None:
        self.sent += nbytes
        if self.leaves_after is not None and self.sent >= self.leaves_after:
            self.gone.set()


@dataclass(eq=False)
class _Answer:
    arrival: Arrival
    done: trio.Event = field(default_factory=trio.Event)
    cancelled_at: float = float("inf")


class ModelledExchange:
    """Implements what a get needs of `ChunkExchange`."""

    def __init__(
        self, peers: Sequence[ModelledPeer], nursery: trio.Nursery, rng: random.Random
    ) -> None:
        self.peers = {peer.id: peer for peer in peers}
        self.stats = PeerStatsTable(clock=trio.current_time, wall=trio.current_time)
        self.came = 0
        """Bytes of bodies that crossed any link."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.lost: list[object] = []
        """Memory of requests that were given up."""
        self._nursery = nursery
        self._rng = rng

    async def have(
        self, peer: PeerId, digests: Sequence[bytes], *, first_byte_timeout: float | None = None
    ) -> list[bool]:
        await trio.sleep(self.peers[peer].rtt)
        if self.peers[peer].gone.is_set():
            raise PeerError(f"Peer {peer.short} is unreachable.")
        return [True] * len(digests)

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
    ) -> bytes:
        found, stats = self.peers[peer], self.stats.of(peer)
        memory = None if into is None else into().obj
        assert memory is None or all(memory is not lost for lost in self.lost)
        found.asked += 1
        stats.began(CHUNK)
        stats.download.began()
        began = trio.current_time()
        answer = _Answer(arrival or Arrival())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self._answer(found, answer, first_byte_timeout or 5.0)
        except trio.Cancelled:
            self.lost.append(memory)  # the bytes under way could still come there
            answer.cancelled_at = trio.current_time() + found.rtt / 2
            if not answer.arrival.began:
                stats.gave_up(trio.current_time() - began)
            raise
        except (PeerError, DeadlineError) as error:
            stats.failed(error.message)
            raise
        finally:
            self.in_flight -= 1
            stats.ended(CHUNK)
            stats.download.ended(answer.arrival.received)
        stats.succeeded()
        return _FALSE if found.corrupts else _DATA

    async def _answer(self, peer: ModelledPeer, answer: _Answer, timeout: float) -> None:
        if peer.gone.is_set() or self._rng.random() < peer.fails:
            await trio.sleep(peer.rtt)
            raise PeerError(f"Peer {peer.id.short} broke off.")
        asked_at = trio.current_time()
        self._nursery.start_soon(self._serve, peer, answer, asked_at)
        sent = peer.sent
        while not answer.done.is_set():
            with trio.move_on_after(timeout):
                async with trio.open_nursery() as either:

                    async def until(event: trio.Event, either: trio.Nursery = either) -> None:
                        await event.wait()
                        either.cancel_scope.cancel()

                    either.start_soon(until, answer.done)
                    either.start_soon(until, peer.gone)
            if peer.gone.is_set():
                raise PeerError(f"Peer {peer.id.short} left.")
            if not answer.done.is_set() and peer.sent == sent:
                raise DeadlineError(f"Peer {peer.id.short} was silent for {timeout:g} s.")
            sent = peer.sent

    async def _serve(self, peer: ModelledPeer, answer: _Answer, asked_at: float) -> None:
        await trio.sleep(peer.rtt)  # there and back, before the line: bodies follow each other
        async with peer.line:
            if trio.current_time() >= answer.cancelled_at + peer.rtt / 2 or peer.is_stalled:
                return
            self.stats.of(peer.id).first_byte(trio.current_time() - asked_at)
            answer.arrival.update(0)
            for at in range(_PIECE, CHUNK + 1, _PIECE):
                await trio.sleep(_PIECE / peer.rate)
                if peer.gone.is_set() or peer.is_stalled:
                    return
                peer.send(_PIECE)
                self.came += _PIECE
                answer.arrival.update(at)
        answer.done.set()

    def hold_up(self, size: int, *, upload: bool = False) -> float:
        return 0.0

    def corrupt(self, peer: PeerId, digest: bytes) -> IntegrityError:
        self.stats.of(peer).corrupted("sent false bytes")
        return IntegrityError(f"Peer {peer.short} sent false bytes.")

    async def put(self, peer: PeerId, digest: bytes, data: bytes, **_: object) -> object:
        raise NotImplementedError


@dataclass(frozen=True)
class _Record:
    peer: PeerId


class _Routing:
    """Everybody has everything."""

    def __init__(self, peers: Sequence[ModelledPeer]) -> None:
        self._peers = peers

    async def find_chunks(self, digests: Sequence[bytes]) -> dict[bytes, list[_Record]]:
        await trio.sleep(0.001)
        return {digest: [_Record(peer.id) for peer in self._peers] for digest in digests}


class _Members:
    def __init__(self, peers: Sequence[ModelledPeer]) -> None:
        self._peers = peers

    def members(self) -> list[Member]:
        return [Member(p.id, "zone", None, 0.0) for p in self._peers if not p.gone.is_set()]


@dataclass(frozen=True)
class Outcome:
    """One run. Times in seconds of virtual time, sizes in bytes."""

    seconds: float
    came: int
    wanted: int
    requests: int
    hedges: int
    moved: int
    retries: int
    most_in_flight: int
    asked: tuple[int, ...]
    """Requests to each peer."""
    used: int
    """Chunks that were used; each once."""
    first_chunk: float

    @property
    def duplicates(self) -> float:
        """Bytes that came for nothing, as a share of those wanted."""
        return (self.came - self.wanted) / self.wanted


async def run_get(
    peers: Sequence[ModelledPeer], chunks: int, home: Path, *, seed: int = 1, **settings: object
) -> Outcome:
    """Get `chunks` of 1 MiB from `peers`, who all have all of them.

    Args:
        settings: keys of `[performance.chunks]`.
    """
    rng = random.Random(seed)
    config = load_config(home, env={}).with_overrides(
        {f"performance.chunks.{name}": value for name, value in settings.items()}
    )
    used: list[int] = []
    times: list[float] = []

    def consume(index: int, plain: bytes) -> None:
        assert plain == _DATA, "false bytes were used"
        used.append(index)
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        exchange = ModelledExchange(peers, nursery, rng)
        context = TransferContext(
            store=MemoryStore(),
            exchange=exchange,
            dht=_Routing(peers),
            membership=_Members(peers),
            self_id=PeerId.from_ed25519(bytes(32)),
            config=config,
            convergence_secret=bytes(32),
            rng=rng,
        )
        fetcher = Fetcher(context, ProgressMeter(ignore_events), trio.CapacityLimiter(4))
        began = trio.current_time()
        await fetcher.fetch([_REF] * chunks, consume)
        seconds = trio.current_time() - began
        came = exchange.came
        nursery.cancel_scope.cancel()
    assert sorted(used) == list(range(chunks)), "every chunk once"
    return Outcome(
        seconds=seconds,
        came=came,
        wanted=chunks * CHUNK,
        requests=sum(peer.asked for peer in peers),
        hedges=fetcher.tally.hedges,
        moved=fetcher.tally.moved,
        retries=fetcher.tally.retries,
        most_in_flight=exchange.most_in_flight,
        asked=tuple(peer.asked for peer in peers),
        used=len(used),
        first_chunk=times[0] - began,
    )


def make_peers(count: int, *, rtt: float, rate: float) -> list[ModelledPeer]:
    """`count` equal peers."""
    return [
        ModelledPeer(PeerId.from_ed25519(random.Random(number).randbytes(32)), rtt, rate)
        for number in range(1, count + 1)
    ]


async def in_place(work: Callable[..., object], *args: object, **_: object) -> object:
    """Instead of a worker thread: the virtual clock would jump ahead while one is busy."""
    await trio.lowlevel.checkpoint()
    return work(*args)


def make_deterministic(seed: int) -> None:
    """Trio runs tasks that are ready together in a random order; in the same one from here on."""
    run = trio._core._run
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
