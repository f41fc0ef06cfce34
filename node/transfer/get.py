"""Get: resolve, find, schedule, verify, write in place, check, rename."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import trio

from ..content import Link, Manifest
from .context import TransferContext
from .destination import Staging
from .download import Fetcher
from .events import Finished, ProgressMeter, ProgressSink, Started, ignore_events
from .failures import task_group
from .pipeline import thread_count
from .plan import GetPlan, ReadPlan, plan_get, plan_read
from .report import GetReport
from .resolve import Resolver
from .stream import open_stream
from .target import choose_target

_T = TypeVar("_T")

_FLUSH_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class GetOptions:
    """How to get."""

    force: bool = False
    """Replace what is at the destination."""
    path: bytes | None = None
    """Only this entry of a folder, and what lies below it."""
    keep: bool = False
    """Keep a copy of every chunk fetched in the local store (as a cache, not as a replica)."""
    durable: bool = True
    """Have everything on the disk before it gets its name; see `destination`."""


class Getter:
    """Gets content of the mesh. One per node; calls may overlap."""

    def __init__(self, ctx: TransferContext) -> None:
        self._ctx = ctx
        self._threads = trio.CapacityLimiter(thread_count())

    async def get(
        self,
        link: Link,
        destination: Path,
        options: GetOptions = GetOptions(),
        progress: ProgressSink = ignore_events,
    ) -> GetReport:
        """Write what `link` names to `destination` (into it, when it is a folder).

        Either everything is there in the end, verified, or nothing is.

        Raises:
            NotFoundError, WrongKeyError, LinkError, FormatError: see `Resolver.resolve`.
            DestinationError, QuotaError: nothing can be written there.
            TransferError: a chunk could not be had; names chunks, peers and answers
                (NotFoundError when everybody answered and nobody has it any more).
        """
        began = trio.current_time()
        meter = ProgressMeter(progress)
        fetcher = Fetcher(self._ctx, meter, self._threads, keep=options.keep)
        manifest = await Resolver(self._ctx, fetcher, self._threads).resolve(link)
        plan = await self._in_thread(partial(plan_get, manifest, options.path))
        name = options.path.rpartition(b"/")[2] if options.path else manifest.name
        target = await self._in_thread(
            partial(choose_target, destination, name, is_tree=plan.is_tree, force=options.force)
        )
        meter.tell(Started(os.fsdecode(name), plan.total_bytes, len(plan.files)))
        staging = Staging(plan, target, force=options.force, durable=options.durable)
        await self._write(plan, staging, fetcher, meter)
        seconds = trio.current_time() - began
        meter.flush()
        meter.tell(Finished(os.fsdecode(name), "done", seconds))
        tally = fetcher.tally
        return GetReport(
            link=link,
            path=target,
            kind=_kind(plan),
            size=plan.total_bytes,
            files=len(plan.files),
            chunks=len(plan.chunks),
            bytes_from_store=tally.from_store,
            bytes_from_peers=dict(tally.from_peers),
            retries=tally.retries,
            corrupt=tally.corrupt,
            seconds=seconds,
        )

    async def _write(
        self, plan: GetPlan, staging: Staging, fetcher: Fetcher, meter: ProgressMeter
    ) -> None:
        try:
            await self._in_thread(staging.prepare)
            async with task_group() as tasks:
                flushing = _FlushAlong(staging, tasks)

                def consume(index: int, plain: bytes) -> None:
                    staging.write(plan.writes[index], plain)

                def deliver(index: int, _: object) -> None:
                    written = sum(write.length for write in plan.writes[index])
                    meter.advance(nbytes=written, chunks=1)
                    flushing.written(written)

                await fetcher.fetch(plan.chunks, consume, deliver=deliver)
                await self._in_thread(staging.finish)
            await _flush(staging)
            await self._in_thread(staging.commit)
        except BaseException:
            # Also when cancelled: no thread writes any more (they are waited for), so what is
            # there can go.
            with trio.CancelScope(shield=True):
                await self._in_thread(staging.discard)
            raise

    async def open(self, link: Link) -> Manifest:
        """The manifest of `link`, to list it or to look something up.

        Raises:
            As `get`, without those about the destination.
        """
        fetcher = Fetcher(self._ctx, ProgressMeter(ignore_events), self._threads)
        return await Resolver(self._ctx, fetcher, self._threads).resolve(link)

    def stream(
        self, link: Link, path: bytes | None = None, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of a file in order, as they arrive; a bounded number is read ahead.

        Entering the context raises what is wrong with the link, the path or the range; iterating
        raises (out of the context) what goes wrong later.

        Args:
            path: which file, when the link is a folder.
            offset: first byte wanted; beyond the end gives nothing.
            length: how many at most; None for all.
        """
        fetcher = Fetcher(self._ctx, ProgressMeter(ignore_events), self._threads)
        resolver = Resolver(self._ctx, fetcher, self._threads)

        async def plan() -> ReadPlan:
            return plan_read(await resolver.resolve(link), path, offset, length)

        return open_stream(fetcher, plan)

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


def _kind(plan: GetPlan) -> Literal["file", "folder", "symlink"]:
    if plan.is_tree:
        return "folder"
    return "file" if plan.files else "symlink"
