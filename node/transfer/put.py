"""Put: read, cut, seal, store, place, announce, manifest, link; for any number of sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from ...errors import MeshError
from ..content import ChunkerProfile, CompressionMode, Sealer
from .announce import Announcer
from .context import TransferContext
from .events import Finished, ProgressMeter, ProgressSink, ignore_events
from .failures import task_group
from .journalling import JournalWriter
from .pipeline import BufferPool, Pipeline, thread_count
from .put_source import SourcePut
from .put_trace import broken_off, keep, name_of, put_trace
from .reading import window_bytes
from .report import PutReport, SourceReport
from .source import Source
from .tracing import Tracer
from .upload import Uploader

_SOURCES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class PutOptions:
    """How to put; None is what the configuration says."""

    replication: int | None = None
    """Copies wanted, this node's included."""
    chunker: str | None = None
    chunk_size: int | None = None
    compression: CompressionMode | None = None
    compression_level: int | None = None
    public: bool = False
    """Do not seal: whoever holds the chunks can read them, and the link needs no key."""


@dataclass(frozen=True, slots=True)
class _Running:
    """One call of `Putter.put`."""

    profile: ChunkerProfile
    sealer: Sealer
    copies: int
    meter: ProgressMeter
    tracer: Tracer


class Putter:
    """Puts files, folders and streams. One per node; calls may overlap."""

    def __init__(self, ctx: TransferContext) -> None:
        self._ctx = ctx
        self._threads = trio.CapacityLimiter(thread_count())

    async def put(
        self,
        sources: Sequence[Source],
        options: PutOptions = PutOptions(),
        progress: ProgressSink = ignore_events,
    ) -> PutReport:
        """Put each source under a link of its own.

        Returns when everything is durable here, placed as far as possible, announced, and a
        sample has been read back. What goes wrong with one source is in its report; the others go
        on. Cancelling leaves nothing half: whole chunks in the store, which the next put finds.

        Raises:
            UsageError: the options make no sense.
        """
        ingest = self._ctx.config.ingest
        profile = ChunkerProfile.named(
            options.chunker or ingest.chunker, options.chunk_size or ingest.chunk_size
        )
        copies = options.replication or self._ctx.config.storage.replication
        tracer = Tracer("put", name_of(sources))
        running = _Running(profile, self._sealer(options), copies, ProgressMeter(progress), tracer)
        try:
            report = await self._run(sources, running)
        except BaseException as error:
            told = error if isinstance(error, MeshError) else None
            await keep(self._ctx.traces, broken_off(tracer, told))
            raise
        await keep(self._ctx.traces, put_trace(tracer, report))
        return report

    async def _run(self, sources: Sequence[Source], running: _Running) -> PutReport:
        reports: dict[int, SourceReport] = {}
        slots = trio.CapacityLimiter(_SOURCES_AT_ONCE)
        meter, tracer = running.meter, running.tracer
        began = trio.current_time()
        journal = JournalWriter(self._ctx.journal, tracer)
        try:
            async with task_group() as tasks:
                tasks.start_soon(journal.run)
                announcer = Announcer(self._ctx, tasks)
                pipeline = Pipeline(
                    self._ctx,
                    running.sealer,
                    BufferPool(window_bytes(running.profile)),
                    self._threads,
                    Uploader(self._ctx, running.copies, meter, tracer, tasks),
                    announcer,
                    meter,
                    tracer,
                )
                async with task_group() as source_tasks:
                    for index, source in enumerate(sources):
                        put = SourcePut(pipeline, source, running.profile, running.copies)
                        source_tasks.start_soon(self._one, put, slots, reports, index)
                with tracer.phase("announcing"):
                    await announcer.flush()
                journal.stop()
        finally:
            await journal.finish()
        meter.flush()
        ordered = tuple(reports[index] for index in range(len(sources)))
        return PutReport(ordered, tuple(announcer.warnings), trio.current_time() - began)

    async def _one(
        self,
        put: SourcePut,
        slots: trio.CapacityLimiter,
        reports: dict[int, SourceReport],
        index: int,
    ) -> None:
        async with slots:
            began = trio.current_time()
            try:
                report = await put.run()
            except MeshError as error:
                report = put.failed(error, trio.current_time() - began)
            reports[index] = report
            put.meter.flush()
            put.meter.tell(Finished(report.name, report.outcome, report.seconds))

    def _sealer(self, options: PutOptions) -> Sealer:
        ingest = self._ctx.config.ingest
        return Sealer(
            None if options.public else self._ctx.convergence_secret,
            options.compression or ingest.compression,
            options.compression_level or ingest.compression_level,
        )
