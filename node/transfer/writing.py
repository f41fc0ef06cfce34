"""A plan becomes files: what an earlier get left is checked, the rest is fetched and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from ...errors import DestinationError, FormatError, MeshError, QuotaError
from ..store.protocol import Buffer
from .destination import Staging, WholeDigestError
from .download import Fetcher
from .events import Partial, ProgressMeter
from .failures import task_group
from .pipeline import thread_count
from .plan import GetPlan

_T = TypeVar("_T")

_FLUSH_BYTES = 128 << 20


class Writer:
    """Writes one plan to one place, through one get's fetcher.

    Args:
        identity: says of what this is a get; see `Staging`.
    """

    def __init__(
        self,
        plan: GetPlan,
        target: Path,
        fetcher: Fetcher,
        meter: ProgressMeter,
        threads: trio.CapacityLimiter,
        *,
        identity: bytes,
        force: bool,
        durable: bool,
    ) -> None:
        self._plan = plan
        self._fetcher = fetcher
        self._meter = meter
        self._threads = threads
        self._stage = partial(
            Staging, plan, target, force=force, durable=durable, identity=identity
        )
        self._counted = [0, 0]
        """Bytes and chunks told as done."""
        self.bytes_kept = 0
        """Taken over from an earlier get."""

    async def write(self) -> None:
        """Until everything has its name.

        Whoever breaks off (an error of the mesh, a cancellation) leaves what is in place to the
        next get; what lies in the way of any get (no room, a name that is taken, a wrong manifest)
        leaves nothing.

        Raises:
            As `Getter.get`.
        """
        try:
            await self._write(self._stage())
        except WholeDigestError:
            if not self.bytes_kept:
                raise
            # Every chunk that came now was checked: what was kept was not what it seemed.
            self._meter.advance(nbytes=-self._counted[0], chunks=-self._counted[1])
            self._counted = [0, 0]
            self.bytes_kept = 0
            await self._write(self._stage())

    async def _write(self, staging: Staging) -> None:
        tracer = self._fetcher.tracer
        try:
            with tracer.phase("preparing"):
                claimed = await self._in_thread(staging.prepare)
            with tracer.phase("checking what was kept"):
                kept = await self._recheck(staging, claimed)
            total = self._plan.total_bytes
            self._meter.tell(Partial(str(staging.part_path), self.bytes_kept, total))
            await self._fetch(staging, kept)
            with tracer.phase("finishing"):
                await _flush(staging)
            await self._in_thread(staging.commit)
        except BaseException as error:
            await self._break_off(staging, error)
            raise

    async def _break_off(self, staging: Staging, error: BaseException) -> None:
        # Also when cancelled: no thread writes any more (they are waited for).
        with trio.CancelScope(shield=True):
            if isinstance(error, DestinationError | QuotaError | FormatError):
                await self._in_thread(staging.discard)
                return
            kept = staging.holds_something
            await self._in_thread(staging.leave)
        if kept and isinstance(error, MeshError):
            done, total = self._counted[0], self._plan.total_bytes
            error.hint = (
                f"{error.hint} {done} of {total} bytes are kept in {staging.part_path}: the same "
                "get goes on from there."
            ).strip()

    async def _recheck(self, staging: Staging, claimed: Sequence[int]) -> Collection[int]:
        """What of the chunks an earlier get claims to have written is really there."""
        kept: set[int] = set()
        if not claimed:
            return kept
        left = iter(claimed)
        async with task_group() as tasks:
            for _ in range(thread_count()):
                tasks.start_soon(self._recheck_some, staging, left, kept)
        self._fetcher.tracer.counts["kept_bytes"] = self.bytes_kept
        return kept

    async def _recheck_some(self, staging: Staging, left: Iterator[int], kept: set[int]) -> None:
        for chunk in left:
            if await self._in_thread(partial(staging.recheck, chunk)):
                kept.add(chunk)
                self.bytes_kept += self._done(chunk)

    async def _fetch(self, staging: Staging, kept: Collection[int]) -> None:
        chunks = [index for index in range(len(self._plan.chunks)) if index not in kept]
        async with task_group() as tasks:
            flushing = _FlushAlong(staging, tasks)

            def consume(number: int, plain: Buffer) -> None:
                staging.write(chunks[number], plain)

            def deliver(number: int, _: object) -> None:
                flushing.written(self._done(chunks[number]))

            refs = [self._plan.chunks[index] for index in chunks]
            await self._fetcher.fetch(refs, consume, deliver=deliver)
            await self._in_thread(staging.finish)

    def _done(self, chunk: int) -> int:
        """A chunk is in place; returns how many bytes of content those are."""
        nbytes = sum(write.length for write in self._plan.writes[chunk])
        self._counted[0] += nbytes
        self._counted[1] += 1
        self._meter.advance(nbytes=nbytes, chunks=1)
        return nbytes

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


class _FlushAlong:
    """Has a large get written to the disk while the rest is still on its way, so that little is
    left to wait for at the end. One flush at a time."""

    def __init__(self, staging: Staging, tasks: trio.Nursery) -> None:
        self._staging = staging
        self._tasks = tasks
        self._pending = 0
        self._running = False

    def written(self, nbytes: int) -> None:
        self._pending += nbytes
        if self._pending >= _FLUSH_BYTES and not self._running:
            self._pending = 0
            self._running = True
            self._tasks.start_soon(self._run)

    async def _run(self) -> None:
        await _flush(self._staging)
        self._running = False


async def _flush(staging: Staging) -> None:
    # Not in the transfer's own threads, which would all end up waiting for the disk; and not
    # waited for when cancelled, because it may take long and leaves nothing behind.
    await trio.to_thread.run_sync(staging.flush, abandon_on_cancel=True)
