"""Drives a scheduler on real peers: one task per request, each in a cancel scope of its own.

The scheduler decides, this does: asks, cancels, looks up, reads from the local store, and tells it
what came of that. Bytes are checked, opened and used in one hop to a worker thread, and a chunk is
used once, however often it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

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
    StoreError,
)
from ..content import ChunkRef, open_chunk
from ..exchange import Reason
from ..exchange.pending import Arrival
from ..store.protocol import Buffer
from .context import TransferContext
from .failures import reason_of, task_group
from .fetch_notes import FetchNotes
from .find import Finder
from .memory import Memory
from .scheduler import (
    Ask,
    Came,
    Cancel,
    Decision,
    Event,
    Failed,
    Fault,
    Finished,
    Found,
    GiveUp,
    HereFailed,
    LookUp,
    Moved,
    PeerJoined,
    PeerLeft,
    ReadHere,
    Scheduler,
    Stopped,
    Verified,
)
from .tracing import Tracer

_MEMBERS_EVERY_SECONDS = 1.0

Consume = Callable[[int, Buffer], object]
"""(index, plaintext) in a worker thread: what is done with an opened chunk. The plaintext is
another one's as soon as this returns."""
Deliver = Callable[[int, object], None]
"""(index, what `consume` returned) back in the event loop."""


class Ledger(Protocol):
    """What is told about chunks that came and peers that failed, for reports and progress."""

    def came(self, peer: PeerId, ref: ChunkRef) -> None: ...

    async def keep(self, ref: ChunkRef, stored: Buffer) -> None:
        """A chunk came from a peer and was used."""
        ...

    def read_here(self, ref: ChunkRef) -> None: ...

    def failed(self, peer: PeerId, fault: Fault, reason: str) -> None: ...


class _CorruptChunkError(IntegrityError):
    """Bytes that came are not the chunk."""


@dataclass(slots=True, eq=False)
class _Running:
    """One request under way."""

    ask: Ask
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    arrival: Arrival = field(default_factory=Arrival)
    memory: memoryview | None = None
    """Where its bytes come, once they do."""
    told: int = -1
    """Bytes the scheduler knows of; -1: not even that the answer began."""


class Driver:
    """Fetches one set of chunks, from `run` to its end.

    Args:
        scheduler: fresh, for exactly these chunks.
        consume: see `Consume`; runs at most once per chunk at a time.
    """

    def __init__(
        self,
        ctx: TransferContext,
        scheduler: Scheduler,
        refs: Sequence[ChunkRef],
        *,
        finder: Finder,
        threads: trio.CapacityLimiter,
        ledger: Ledger,
        tracer: Tracer,
        consume: Consume,
        deliver: Deliver | None = None,
    ) -> None:
        self._ctx = ctx
        self._scheduler = scheduler
        self._refs = refs
        self._finder = finder
        self._threads = threads
        self._ledger = ledger
        self._tracer = tracer
        self._notes = FetchNotes(tracer)
        self._consume = consume
        self._deliver = deliver
        self._memory = Memory(max((ref.size for ref in refs), default=0))
        self._events: list[Event] = []
        self._more = trio.Event()
        self._running: dict[int, _Running] = {}
        self._using: dict[int, trio.Event] = {}
        """Chunks whose bytes are in a worker thread now."""
        self._used: set[int] = set()
        """Chunks that were used, which the scheduler does not know yet."""
        self._looking = 0
        """Lookups and reads of the local store under way."""
        self._members: frozenset[PeerId] | None = None
        self._members_at = float("-inf")

    # --- for the owner ---

    async def run(self) -> GiveUp | None:
        """Until everything is verified (None), or it cannot be.

        Raises:
            MeshError: whatever `consume` raises, or a chunk that its manifest describes wrongly.
        """
        last: Finished | GiveUp | None = None
        async with task_group() as tasks:
            while not self._scheduler.over:
                for decision in self._scheduler.step(trio.current_time(), self._gather()):
                    if isinstance(decision, Finished | GiveUp):
                        last = decision
                    else:
                        self._do(decision, tasks)
                if not self._scheduler.over:
                    await self._wait()
        return last if isinstance(last, GiveUp) else None

    def move(self, first: int, stop: int, again: Collection[int] = ()) -> None:
        """Other chunks are wanted now; see `Moved`."""
        self._post(Moved(first, stop, again))

    def stop(self) -> None:
        """Nothing is wanted any more: `run` ends."""
        self._post(Stopped())

    # --- events in, decisions out ---

    def _post(self, event: Event) -> None:
        self._events.append(event)
        self._more.set()

    def _gather(self) -> list[Event]:
        events, self._events = self._events, []
        self._more = trio.Event()
        self._used.clear()
        return [*self._progress(), *self._changes_of_members(), *events]

    def _progress(self) -> Iterator[Event]:
        for ident, running in self._running.items():
            arrival = running.arrival
            if arrival.began and arrival.received > running.told:
                running.told = arrival.received
                yield Came(ident, arrival.received, arrival.at)

    def _changes_of_members(self) -> Iterator[Event]:
        now = trio.current_time()
        if now < self._members_at + _MEMBERS_EVERY_SECONDS:
            return
        self._members_at = now
        before = self._members
        self._members = frozenset(m.peer for m in self._ctx.membership.members())
        if before is not None:
            yield from map(PeerJoined, sorted(self._members - before))
            yield from map(PeerLeft, sorted(before - self._members))

    async def _wait(self) -> None:
        at = self._scheduler.wake_at()
        with trio.move_on_at(float("inf") if at is None else at):
            if self._running or self._using or self._looking:
                await self._more.wait()
            else:  # every holder failed or is busy
                with self._tracer.phase("waiting"):
                    await self._more.wait()

    def _do(self, decision: Decision, tasks: trio.Nursery) -> None:
        match decision:
            case Ask():
                running = self._running[decision.request] = _Running(decision)
                self._notes.asked(decision, (other.ask for other in self._running.values()))
                tasks.start_soon(self._request, running)
            case Cancel(request=ident):
                if (gone := self._running.pop(ident, None)) is not None:
                    gone.scope.cancel()
                    self._notes.cancelled(gone.ask.peer, gone.arrival.received)
            case ReadHere(chunk=index):
                self._looking += 1
                tasks.start_soon(self._read_here, index)
            case LookUp(chunks=chunks, fresh=fresh):
                self._looking += 1
                tasks.start_soon(self._look_up, chunks, fresh)
            case _:
                raise AssertionError(decision)

    # --- finding ---

    async def _look_up(self, chunks: tuple[int, ...], fresh: bool) -> None:
        digests = [self._refs[index].digest for index in chunks]
        with self._tracer.phase("finding"):
            if fresh:
                holders = await self._finder.find_again(digests)
                here: set[int] = set()
            else:
                held = await self._ctx.store.has(digests)
                here = {index for index, is_held in zip(chunks, held, strict=True) if is_held}
                missing = [self._refs[index].digest for index in chunks if index not in here]
                holders = await self._finder.find(missing) if missing else {}
        found = {index: holders[self._refs[index].digest] for index in chunks if index not in here}
        self._looking -= 1
        self._post(Found(found, here))

    # --- fetching ---

    async def _read_here(self, index: int) -> None:
        ref = self._refs[index]
        try:
            with self._tracer.phase("local store"):
                stored = await self._ctx.store.get(ref.digest)
        except (NotFoundError, StoreError, IntegrityError):
            self._looking -= 1
            self._post(HereFailed(index))  # gone or rotten meanwhile: peers have it
            return
        await self._use(index, stored, verified=True)
        self._looking -= 1
        self._ledger.read_here(ref)
        self._post(Verified(index, None))

    async def _request(self, running: _Running) -> None:
        ask = running.ask
        with running.scope:
            try:
                with self._tracer.asking(ask.peer) as tally:
                    began = trio.current_time()
                    stored = await self._get(running)
                    tally.slowest = max(tally.slowest, trio.current_time() - began)
                try:
                    await self._take(running, stored)
                finally:
                    # Not before: of a request that failed, the exchange may still be reading it.
                    if running.memory is not None:
                        self._memory.give_back(running.memory)
            except _CorruptChunkError:
                digest = self._refs[ask.chunk].digest
                self._fail(running, Fault.CORRUPT, self._ctx.exchange.corrupt(ask.peer, digest))
            except DeadlineError as error:
                self._fail(running, Fault.TIMED_OUT, error)
            except (PeerError, MembershipError) as error:
                self._fail(running, _fault_of(error), error)

    async def _get(self, running: _Running) -> Buffer:
        settings, ask = self._ctx.chunk_settings, running.ask
        ref, exchange = self._refs[ask.chunk], self._ctx.exchange

        def into() -> memoryview:
            running.memory = self._memory.take(ref.size)
            return running.memory

        with trio.move_on_after(settings.chunk_timeout_secs + exchange.hold_up(ref.size)):
            stored = await exchange.get_unverified(
                ask.peer,
                ref.digest,
                0,
                ref.size,
                first_byte_timeout=settings.peer_response_timeout_secs,
                arrival=running.arrival,
                into=into,
            )
            running.arrival.update(len(stored))
            return stored
        reason = f"did not send the whole chunk within {settings.chunk_timeout_secs:g} s"
        # A request given up is no failure to the exchange; this one is.
        exchange.stats.of(ask.peer).failed(reason)
        raise DeadlineError(f"{reason}.")

    async def _take(self, running: _Running, stored: Buffer) -> None:
        """Use what came, unless the same chunk came from elsewhere a moment ago."""
        ask = running.ask
        while (other := self._using.get(ask.chunk)) is not None:
            await other.wait()
        if ask.chunk in self._used:
            return  # the scheduler is about to cancel this
        await self._use(ask.chunk, stored, verified=False)
        self._running.pop(ask.request, None)
        self._post(Came(ask.request, len(stored), running.arrival.at))
        self._post(Verified(ask.chunk, ask.request))
        self._tracer.peer(ask.peer).nbytes += len(stored)
        self._ledger.came(ask.peer, self._refs[ask.chunk])

    async def _use(self, index: int, stored: Buffer, *, verified: bool) -> None:
        ref = self._refs[index]
        with self._alone(index):
            with self._tracer.phase("checking and writing"):
                # One hop: verify, open and use in the same thread, while the bytes are in its
                # cache. When it has begun it ends, also when the request is given up.
                result = await trio.to_thread.run_sync(
                    _open_and_consume,
                    ref,
                    stored,
                    verified,
                    self._memory,
                    index,
                    self._consume,
                    limiter=self._threads,
                )
            if not verified:
                with trio.CancelScope(shield=True):  # used, and the scheduler must hear of it
                    await self._ledger.keep(ref, stored)
        self._used.add(index)
        if self._deliver is not None:
            self._deliver(index, result)

    @contextmanager
    def _alone(self, index: int) -> Iterator[None]:
        done = self._using[index] = trio.Event()
        try:
            yield
        finally:
            del self._using[index]
            done.set()

    def _fail(self, running: _Running, fault: Fault, error: MeshError) -> None:
        ask = running.ask
        if self._running.pop(ask.request, None) is None:
            return  # given up a moment ago
        reason = reason_of(error)
        retry_after = error.retry_after if isinstance(error, PeerRefusedError) else None
        self._notes.failed(ask.peer, fault, reason, retry_after)
        self._ledger.failed(ask.peer, fault, reason)
        self._post(Failed(ask.request, fault, reason, retry_after))


def _fault_of(error: MeshError) -> Fault:
    if not isinstance(error, PeerRefusedError):
        return Fault.FAILED
    known = {Reason.NOT_FOUND: Fault.ABSENT, Reason.BUSY: Fault.BUSY, Reason.FAILED: Fault.FAILED}
    return next((f for word, f in known.items() if error.reason == word), Fault.REFUSED)


def _open_and_consume(
    ref: ChunkRef,
    stored: Buffer,
    verified: bool,
    memory: Memory,
    index: int,
    consume: Consume,
) -> object:
    if not verified and blake3(stored).digest() != ref.digest:
        raise _CorruptChunkError(f"{len(stored)} bytes are not the chunk that was asked for.")
    with memory.lent(ref.size) as room:
        return consume(index, open_chunk(ref, stored, verified=True, memory=room))
