"""Get: resolve, find, schedule, verify, write in place, check, rename."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import trio
from blake3 import blake3

from ...errors import MeshError
from ..content import Link, Manifest
from .context import TransferContext
from .download import Fetcher
from .events import Finished, ProgressMeter, ProgressSink, Started, ignore_events
from .pipeline import thread_count
from .plan import GetPlan, ReadPlan, plan_get, plan_read
from .put_trace import broken_off, keep
from .report import GetReport
from .resolve import Resolver
from .stream import SeekableReader, open_reader, open_stream
from .target import choose_target
from .tracing import Tracer
from .writing import Writer

_T = TypeVar("_T")
_R = TypeVar("_R")
_Opener = Callable[[Fetcher, Callable[[], Awaitable[ReadPlan]]], AbstractAsyncContextManager[_R]]


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

        Either everything is there in the end, verified, or nothing is under the wanted name. What
        a get that was broken off (cancelled, killed, left without holders) had written is kept
        beside it, and checked and taken over by the next get of the same to the same place.

        Raises:
            NotFoundError, WrongKeyError, LinkError, FormatError: see `Resolver.resolve`.
            DestinationError, QuotaError: nothing can be written there, or another get of the same
                is at work there.
            TransferError: a chunk could not be had; names chunks, peers and answers
                (NotFoundError when everybody answered and nobody has it any more).
        """
        tracer = Tracer("get")
        tracer.root = link.digest
        try:
            report = await self._get(link, destination, options, progress, tracer)
        except BaseException as error:
            known = error if isinstance(error, MeshError) else None
            await keep(self._ctx.traces, broken_off(tracer, known))
            raise
        await keep(self._ctx.traces, tracer.finish("done"))
        return report

    async def _get(
        self,
        link: Link,
        destination: Path,
        options: GetOptions,
        progress: ProgressSink,
        tracer: Tracer,
    ) -> GetReport:
        began = trio.current_time()
        meter = ProgressMeter(progress)
        fetcher = Fetcher(self._ctx, meter, self._threads, keep=options.keep, tracer=tracer)
        with tracer.phase("resolving"):
            manifest = await Resolver(self._ctx, fetcher, self._threads).resolve(link)
            plan = await self._in_thread(partial(plan_get, manifest, options.path))
        name = options.path.rpartition(b"/")[2] if options.path else manifest.name
        target = await self._in_thread(
            partial(choose_target, destination, name, is_tree=plan.is_tree, force=options.force)
        )
        tracer.name, tracer.size = os.fsdecode(name), plan.total_bytes
        meter.tell(Started(os.fsdecode(name), plan.total_bytes, len(plan.files)))
        writer = Writer(
            plan,
            target,
            fetcher,
            meter,
            self._threads,
            identity=_identity(link, options.path),
            force=options.force,
            durable=options.durable,
        )
        await writer.write()
        seconds = trio.current_time() - began
        meter.flush()
        meter.tell(Finished(os.fsdecode(name), "done", seconds))
        tally = fetcher.tally
        tracer.counts["chunks"] = len(plan.chunks)
        tracer.counts["bytes_from_store"] = tally.from_store
        return GetReport(
            link=link,
            path=target,
            kind=_kind(plan),
            size=plan.total_bytes,
            files=len(plan.files),
            chunks=len(plan.chunks),
            bytes_from_store=tally.from_store,
            bytes_kept=writer.bytes_kept,
            bytes_from_peers=dict(tally.from_peers),
            retries=tally.retries,
            hedges=tally.hedges,
            moved=tally.moved,
            corrupt=tally.corrupt,
            seconds=seconds,
        )

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
        return self._traced(link, partial(_plan_read, path, offset, length), open_stream)

    def reader(
        self, link: Link, path: bytes | None = None
    ) -> AbstractAsyncContextManager[SeekableReader]:
        """A file to be read from any place; whoever seeks has what lies elsewhere cancelled.

        Raises:
            As `stream`.
        """
        return self._traced(link, partial(_plan_read, path, 0, None), open_reader)

    @asynccontextmanager
    async def _traced(
        self, link: Link, choose: Callable[[Manifest], ReadPlan], opener: _Opener[_R]
    ) -> AsyncGenerator[_R]:
        tracer = Tracer("stream")
        tracer.root = link.digest
        fetcher = Fetcher(self._ctx, ProgressMeter(ignore_events), self._threads, tracer=tracer)

        async def plan() -> ReadPlan:
            with tracer.phase("resolving"):
                manifest = await Resolver(self._ctx, fetcher, self._threads).resolve(link)
            tracer.name = os.fsdecode(manifest.name)
            decided = choose(manifest)
            tracer.size = decided.total_bytes
            return decided

        try:
            async with opener(fetcher, plan) as reader:
                yield reader
        except BaseException as error:
            known = error if isinstance(error, MeshError) else None
            await keep(self._ctx.traces, broken_off(tracer, known))
            raise
        await keep(self._ctx.traces, tracer.finish("done"))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def _plan_read(path: bytes | None, offset: int, length: int | None, manifest: Manifest) -> ReadPlan:
    return plan_read(manifest, path, offset, length)


def _identity(link: Link, path: bytes | None) -> bytes:
    """Of what a get is: the root decides every byte, the path which of them."""
    return blake3(link.digest + (path or b"")).digest()


def _kind(plan: GetPlan) -> Literal["file", "folder", "symlink"]:
    if plan.is_tree:
        return "folder"
    return "file" if plan.files else "symlink"
