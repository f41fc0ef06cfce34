"""What a transfer tells while it runs: small facts for a progress bar, an API client or a log.

`bytes_done` counts real bytes only: on a put those durable in the local store, on a get those
verified and written. Rates are the reader's job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import trio

from ...dht.peer_id import PeerId

_EMIT_EVERY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Started:
    """Work on one source or link begins; `total_bytes` is None when it cannot be known (stdin)."""

    name: str
    total_bytes: int | None
    files: int

    def to_json(self) -> dict[str, object]:
        return {
            "type": "started",
            "name": self.name,
            "total_bytes": self.total_bytes,
            "files": self.files,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """Totals since the transfer began; sent at most ten times a second."""

    bytes_done: int
    chunks_done: int
    bytes_sent: int = 0
    """Put: sent to peers and acknowledged, over all copies. Get: fetched from peers (not read
    locally)."""
    bytes_held: int = 0
    """Put: stored bytes that peers vouch for, over all copies: those sent, and those they had."""
    bytes_wanted: int = 0
    """Put: what `bytes_held` is to become for the chunks read so far."""

    def to_json(self) -> dict[str, object]:
        return {
            "type": "progress",
            "bytes_done": self.bytes_done,
            "chunks_done": self.chunks_done,
            "bytes_sent": self.bytes_sent,
            "bytes_held": self.bytes_held,
            "bytes_wanted": self.bytes_wanted,
        }


@dataclass(frozen=True, slots=True)
class FileDone:
    """One file could not be put: said while the rest goes on. (Success is not said per file.)"""

    path: str
    outcome: Literal["failed"]
    reason: str

    def to_json(self) -> dict[str, object]:
        return {"type": "file", "path": self.path, "outcome": self.outcome, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class PeerNote:
    """A peer failed us and another one is used; why is its own answer."""

    peer: PeerId
    reason: str

    def to_json(self) -> dict[str, object]:
        return {"type": "peer", "peer": str(self.peer), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Finished:
    """Work on one source or link ended; `outcome` is that of its report."""

    name: str
    outcome: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        return {
            "type": "finished",
            "name": self.name,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Partial:
    """A get writes to `path` until all of it is there; when it is broken off, the next get of the
    same goes on from what is in place. `bytes_kept` are in place already from an earlier one."""

    path: str
    bytes_kept: int
    total_bytes: int

    def to_json(self) -> dict[str, object]:
        return {
            "type": "partial",
            "path": self.path,
            "bytes_kept": self.bytes_kept,
            "total_bytes": self.total_bytes,
        }


TransferEvent = Started | Partial | Progress | FileDone | PeerNote | Finished
ProgressSink = Callable[[TransferEvent], None]


def ignore_events(event: TransferEvent) -> None:
    """The sink of somebody who only wants the report."""


class ProgressMeter:
    """Adds up what is done and tells the sink now and then, so that 10^5 chunks stay cheap."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._bytes = 0
        self._chunks = 0
        self._sent = 0
        self._held = 0
        self._wanted = 0
        self._due = float("-inf")
        self._told: Progress | None = None

    def tell(self, event: TransferEvent) -> None:
        """Pass one event on at once."""
        self._sink(event)

    def advance(
        self, *, nbytes: int = 0, chunks: int = 0, sent: int = 0, held: int = 0, wanted: int = 0
    ) -> None:
        """Add to the totals; emits when a tenth of a second has passed since the last time."""
        self._bytes += nbytes
        self._chunks += chunks
        self._sent += sent
        self._held += held
        self._wanted += wanted
        if trio.current_time() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Tell the totals now, unless nothing changed."""
        now = Progress(self._bytes, self._chunks, self._sent, self._held, self._wanted)
        if now != self._told:
            self._told = now
            self._due = trio.current_time() + _EMIT_EVERY_SECONDS
            self._sink(now)
