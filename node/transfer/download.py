"""Fetching chunks: one owner each, the best holder first, verified before anything sees them.

    find (a window ahead) -> limiter -> choose a holder -> fetch -> verify, open, consume (a thread)

A chunk that one holder does not deliver is asked of another at once; when all have been tried it
waits (exponential backoff, full jitter) and asks anew who holds it, `retry_failed_chunks` times.
A holder that is only busy is waited for as long as other chunks keep coming.
The first chunk nobody delivers ends the whole: what is under way is finished, nothing new begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio
from blake3 import blake3

from ...dht.peer_id import PeerId
from ...errors import (
    DeadlineError,
    IntegrityError,
    MembershipError,
    MeshError,
    NotFoundError,
    PeerError,
    PeerRefusedError,
    QuotaError,
    StoreError,
)
from ..content import ChunkRef, open_chunk
from ..exchange import Reason
from .context import TransferContext
from .depth import FIRST_DEPTH, AdaptiveDepth
from .events import PeerNote, ProgressMeter
from .failures import reason_of, task_group
from .find import Finder, Holders
from .lost import Answer, LostChunk, could_not_fetch
from .schedule import BACKOFF_CAP_SECONDS, Schedule, backoff_seconds, patience_seconds

_FIRST_WINDOW = 64
_WINDOW = 1024

Consume = Callable[[int, bytes], object]
"""(index, plaintext) in a worker thread: what is done with an opened chunk."""
Deliver = Callable[[int, object], None]
"""(index, what `consume` returned) back in the event loop."""
Admit = Callable[[int], Awaitable[None]]
"""Called in order before a chunk is begun; may wait."""


class _CorruptChunkError(IntegrityError):
    """Bytes that came are not the chunk."""


@dataclass(slots=True)
class FetchTally:
    """What one get has cost so far. Sizes in bytes as stored."""

    from_store: int = 0
    from_peers: Counter[PeerId] = field(default_factory=Counter)
    retries: int = 0
    """Requests that had to be repeated, elsewhere or later."""
    corrupt: int = 0


class Fetcher:
    """Fetches sets of chunks for one get."""

    def __init__(
        self,
        ctx: TransferContext,
        meter: ProgressMeter,
        threads: trio.CapacityLimiter,
        *,
        keep: bool = False,
    ) -> None:
        settings = ctx.chunk_settings
        self._ctx = ctx
        self._meter = meter
        self._threads = threads
        self._keep = keep
        setting = settings.max_concurrent_retrievals
        self._depth = AdaptiveDepth(trio.current_time()) if setting == "auto" else None
        self._slots = trio.CapacityLimiter(FIRST_DEPTH if setting == "auto" else setting)
        self._schedule = Schedule(
            prefer_fast=settings.prefer_fast_peers,
            expected_seconds=self._expected_seconds,
            rng=ctx.rng,
        )
        self._progress = float("-inf")
        """When a chunk came last from any peer."""
        self.finder = Finder(ctx)
        self.tally = FetchTally()

    def _expected_seconds(self, peer: PeerId, size: int, queued: int) -> float:
        stats = self._ctx.exchange.stats
        # The statistics count what is under way already; what we chose a moment ago is not yet.
        unseen = max(queued - stats[peer].in_flight_bytes, 0)
        return stats.expected_seconds(peer, size + unseen)

    async def fetch(
        self,
        refs: Sequence[ChunkRef],
        consume: Consume,
        *,
        deliver: Deliver | None = None,
        admit: Admit | None = None,
    ) -> None:
        """Fetch all of `refs`, beginning them in order.

        Raises:
            TransferError: a chunk could not be had; names chunks, peers and answers.
            NotFoundError: the same, when everybody answered and nobody has it any more.
            WrongKeyError, FormatError: a chunk is what its digest says, but not what the
                manifest says.
            MeshError: whatever `consume` raises.
        """
        job = _Job(refs, consume, deliver, admit)
        async with task_group() as tasks:
            send, receive = trio.open_memory_channel[tuple[int, Holders]](1)
            tasks.start_soon(self._find_windows, job, send)
            with job.beginning:
                async with receive:
                    async for start, holders in receive:
                        await self._begin_window(job, start, holders, tasks)
        if job.lost:
            untried = len(job.refs) - job.begun
            raise could_not_fetch(job.lost, len(job.refs), untried, len(self.finder.asked))

    async def _find_windows(
        self, job: _Job, send: trio.MemorySendChannel[tuple[int, Holders]]
    ) -> None:
        """Look for holders some way ahead of the fetching, not for a whole huge file at once."""
        with job.finding:
            await self._send_windows(job, send)

    async def _send_windows(
        self, job: _Job, send: trio.MemorySendChannel[tuple[int, Holders]]
    ) -> None:
        async with send:
            start, width = 0, _FIRST_WINDOW
            while start < len(job.refs):
                digests = [ref.digest for ref in job.refs[start : start + width]]
                held = await self._ctx.store.has(digests)
                missing = [d for d, here in zip(digests, held, strict=True) if not here]
                holders = await self.finder.find(missing) if missing else {}
                await send.send((start, holders))
                start, width = start + width, _WINDOW

    async def _begin_window(
        self, job: _Job, start: int, holders: Holders, tasks: trio.Nursery
    ) -> None:
        width = _FIRST_WINDOW if start == 0 else _WINDOW
        for index in range(start, min(start + width, len(job.refs))):
            if job.admit is not None:
                await job.admit(index)
            token = object()
            await self._slots.acquire_on_behalf_of(token)
            known = holders.get(job.refs[index].digest)
            tasks.start_soon(self._own, job, index, known, token)
            job.begun += 1

    async def _own(
        self, job: _Job, index: int, holders: list[PeerId] | None, token: object
    ) -> None:
        """The one task responsible for one chunk."""
        try:
            if holders is not None or not await self._from_store(job, index):
                await self._from_peers(job, index, holders)
        finally:
            self._slots.release_on_behalf_of(token)

    async def _from_store(self, job: _Job, index: int) -> bool:
        ref = job.refs[index]
        try:
            stored = await self._ctx.store.get(ref.digest)
        except (NotFoundError, StoreError, IntegrityError):
            return False  # gone or rotten meanwhile: peers have it
        await self._consume(job, index, stored, verified=True)
        self.tally.from_store += ref.size
        return True

    async def _from_peers(self, job: _Job, index: int, holders: list[PeerId] | None) -> None:
        ref = job.refs[index]
        rounds = 1 + self._ctx.chunk_settings.retry_failed_chunks
        answers: dict[PeerId, Answer] = {}
        attempt, busy_since = 0, None
        while True:
            if holders is None:
                holders = await self.finder.find_again(ref.digest)
            pause = await self._one_round(job, index, holders, answers)
            if pause is None:
                return
            wait = max(backoff_seconds(attempt, self._ctx.rng), pause)
            busy = any(peer in answers and answers[peer].busy for peer in holders)
            busy_since = (busy_since or trio.current_time()) if busy else None
            if busy_since is None or self._patience_is_over(busy_since):
                attempt, holders = attempt + 1, None
            if attempt == rounds:
                break
            await trio.sleep(min(wait, BACKOFF_CAP_SECONDS))
        job.give_up(LostChunk(ref, answers))

    def _patience_is_over(self, busy_since: float) -> bool:
        """Whether to count a round with busy holders as failed: nothing at all got on."""
        idle = trio.current_time() - max(busy_since, self._progress)
        return idle > patience_seconds(self._ctx.chunk_settings)

    async def _one_round(
        self, job: _Job, index: int, holders: list[PeerId], answers: dict[PeerId, Answer]
    ) -> float | None:
        """Ask each holder once, best first. None: done; else how long to wait at least."""
        ref = job.refs[index]
        tried: set[PeerId] = set()
        pauses: list[float] = []
        while (peer := self._schedule.choose(holders, ref.size, tried)) is not None:
            tried.add(peer)
            stats = self._ctx.exchange.stats[peer]
            if not stats.allows():
                rests = Answer(f"left alone after failures ({stats.last_error})")
                answers.setdefault(peer, rests)
                pauses.append(stats.retry_in)
                continue
            try:
                stored = await self._ask(peer, ref)
                await self._consume(job, index, stored, verified=False)
            except _CorruptChunkError:
                self.tally.corrupt += 1
                self._blame(peer, self._ctx.exchange.corrupt(peer, ref.digest), answers)
            except (PeerError, MembershipError, DeadlineError) as error:
                self._blame(peer, error, answers)
                refused = isinstance(error, PeerRefusedError) and error.retry_after
                pauses.append(refused or 0.0)
            else:
                self._came(ref.size)
                self.tally.from_peers[peer] += ref.size
                self._meter.advance(sent=ref.size)
                return None
        return min(pauses, default=0.0)

    async def _ask(self, peer: PeerId, ref: ChunkRef) -> bytes | bytearray:
        settings = self._ctx.chunk_settings
        began = trio.current_time()
        self._schedule.begin(peer, ref.size)
        try:
            with trio.move_on_after(settings.chunk_timeout_secs) as limit:
                stored = await self._ctx.exchange.get_unverified(
                    peer,
                    ref.digest,
                    0,
                    ref.size,
                    first_byte_timeout=settings.peer_response_timeout_secs,
                )
        except DeadlineError:
            self._timed_out(began)
            raise
        finally:
            self._schedule.end(peer, ref.size)
        if not limit.cancelled_caught:
            return stored
        self._timed_out(began)
        reason = f"did not send the whole chunk within {settings.chunk_timeout_secs:g} s"
        # A request given up is no failure to the exchange; this one is.
        self._ctx.exchange.stats.of(peer).failed(reason)
        raise DeadlineError(f"{reason}.")

    def _timed_out(self, began: float) -> None:
        if self._depth is not None:
            self._depth.timed_out(began, trio.current_time())
            self._slots.total_tokens = self._depth.depth

    def _came(self, size: int) -> None:
        self._progress = trio.current_time()
        if self._depth is not None:
            self._depth.arrived(size, self._progress)
            self._slots.total_tokens = self._depth.depth

    def _blame(self, peer: PeerId, error: MeshError, answers: dict[PeerId, Answer]) -> None:
        word = error.reason if isinstance(error, PeerRefusedError) else ""
        absent, busy = word == Reason.NOT_FOUND, word == Reason.BUSY
        answers[peer] = Answer(reason_of(error), absent, busy)
        self.tally.retries += 1
        self._meter.tell(PeerNote(peer, answers[peer].reason))

    async def _consume(
        self, job: _Job, index: int, stored: bytes | bytearray, *, verified: bool
    ) -> None:
        ref = job.refs[index]
        # One hop: verify, open and use in the same thread, while the bytes are in its cache.
        result = await trio.to_thread.run_sync(
            _open_and_consume, ref, stored, verified, index, job.consume, limiter=self._threads
        )
        if self._keep and not verified:
            await self._keep_copy(ref, stored)
        if job.deliver is not None:
            job.deliver(index, result)

    async def _keep_copy(self, ref: ChunkRef, stored: bytes | bytearray) -> None:
        try:
            await self._ctx.store.put([(ref.digest, stored)], verify=False)
        except (QuotaError, StoreError) as error:
            # A copy here is a favour to later gets; this one does not need it.
            self._keep = False
            self._meter.tell(PeerNote(self._ctx.self_id, reason_of(error)))


@dataclass(slots=True)
class _Job:
    """One call of `fetch`."""

    refs: Sequence[ChunkRef]
    consume: Consume
    deliver: Deliver | None
    admit: Admit | None
    begun: int = 0
    lost: list[LostChunk] = field(default_factory=list)
    finding: trio.CancelScope = field(default_factory=trio.CancelScope)
    beginning: trio.CancelScope = field(default_factory=trio.CancelScope)

    def give_up(self, chunk: LostChunk) -> None:
        """Begin nothing more: also not what waits for somebody who waits for the lost chunk."""
        self.lost.append(chunk)
        self.finding.cancel()
        self.beginning.cancel()


def _open_and_consume(
    ref: ChunkRef, stored: bytes | bytearray, verified: bool, index: int, consume: Consume
) -> object:
    if not verified and blake3(stored).digest() != ref.digest:
        raise _CorruptChunkError(f"{len(stored)} bytes are not the chunk that was asked for.")
    return consume(index, open_chunk(ref, stored, verified=True))
