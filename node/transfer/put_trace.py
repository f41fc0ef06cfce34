"""The trace of a put: what its report adds to what was recorded on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from ...errors import MeshError
from .report import PutReport
from .source import Source, StreamSource
from .trace import Trace, TraceKeeper
from .tracing import Tracer

_KEEP_WITHIN_SECONDS = 2.0


def name_of(sources: Sequence[Source]) -> str:
    """What a put is called afterwards."""
    if not sources:
        return "nothing"
    first = sources[0]
    name = (
        first.name if isinstance(first, StreamSource) else os.path.basename(os.path.abspath(first))
    )
    return name if len(sources) == 1 else f"{name} and {len(sources) - 1} more"


def put_trace(tracer: Tracer, report: PutReport) -> Trace:
    """The trace of a put that came to its end, good or bad."""
    roots = [source.link.digest for source in report.sources if source.link is not None]
    if roots:
        tracer.root, tracer.more_roots = roots[0], tuple(dict.fromkeys(roots[1:]))
    tracer.size = sum(source.size for source in report.sources)
    tracer.counts.update(
        sources=report.total,
        failed=report.failed,
        chunks=sum(source.chunks for source in report.sources),
        new_chunks=sum(source.new_chunks for source in report.sources),
        retries=report.retries,
        bytes_sent=sum(source.bytes_sent for source in report.sources),
        sampled=sum(source.sampled for source in report.sources),
    )
    with_link = [source for source in report.sources if source.link is not None]
    if with_link:
        weakest = min(with_link, key=lambda source: source.copies - source.wanted_copies)
        tracer.counts.update(copies=weakest.copies, wanted_copies=weakest.wanted_copies)
    for source in report.sources:
        for warning in source.warnings:
            tracer.note(warning)
    failed = [source for source in report.sources if source.outcome == "failed"]
    if not failed:
        return tracer.finish(report.outcome)
    return tracer.finish(report.outcome, error=failed[0].error, hint=failed[0].hint)


def broken_off(tracer: Tracer, error: MeshError | None) -> Trace:
    """The trace of one that was cancelled, or could not even begin."""
    if error is None:
        return tracer.finish("interrupted")
    return tracer.finish("failed", error=error.message, hint=error.hint)


async def keep(traces: TraceKeeper, trace: Trace) -> None:
    """Hand a trace over, also when the transfer was cancelled."""
    with trio.move_on_after(_KEEP_WITHIN_SECONDS, shield=True):
        await traces.keep(trace)
