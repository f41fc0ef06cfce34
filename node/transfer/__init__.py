"""Transfer: put and get. Reading, cutting, placing, scheduling, fetching, writing.

Deals in files, manifests and plans. It must not know sockets or wire formats: chunks move through
`exchange`, records through `dht`, both behind the narrow protocols of `context.py`. What is decided
(`placement`, `schedule`, `plan`) is pure and kept apart from what is done.
"""

from .context import (
    ChunkExchange,
    ContentRouting,
    Membership,
    TransferContext,
)
from .events import (
    FileDone,
    Finished,
    Partial,
    PeerNote,
    Progress,
    ProgressSink,
    Started,
    TransferEvent,
    ignore_events,
)
from .get import GetOptions, Getter
from .placement import Member
from .put import PutOptions, Putter
from .report import GetReport, Kind, Outcome, PutReport, SourceReport
from .source import Failure, Source, StreamSource

__all__ = [
    "ChunkExchange",
    "ContentRouting",
    "Failure",
    "FileDone",
    "Finished",
    "GetOptions",
    "GetReport",
    "Getter",
    "Kind",
    "Member",
    "Membership",
    "Outcome",
    "Partial",
    "PeerNote",
    "Progress",
    "ProgressSink",
    "PutOptions",
    "PutReport",
    "Putter",
    "Source",
    "SourceReport",
    "Started",
    "StreamSource",
    "TransferContext",
    "TransferEvent",
    "ignore_events",
]
