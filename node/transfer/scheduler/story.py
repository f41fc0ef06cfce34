"""What was decided in one set of chunks, what came of it and why: bounded, cheap, kept as values.

The single steps that explain the sums of `transfer.trace`: who was asked for what and when, how it
answered, hedges, moves, waits and their causes. The first and the last of them are kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ....dht.peer_id import PeerId

_FIRST_KEPT = 500
_LAST_KEPT = 1500
_MAX_TEXT = 200


class What(StrEnum):
    """The kinds of steps."""

    ASKED = "asked"
    CAME = "came"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SHED = "shed"
    LEFT = "left"
    JOINED = "joined"
    RESTS = "rests"
    WAITS = "waits"
    LOST = "lost"
    READ_HERE = "read here"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. `at`: seconds since the scheduler began."""

    at: float
    what: What
    chunk: int | None = None
    peer: PeerId | None = None
    detail: str = ""
    """Why: a word of `Why` when somebody is asked, an answer, the cause of a wait."""
    seconds: float | None = None
    """How long it took, or how long the wait is to be."""

    def __str__(self) -> str:
        chunk = "" if self.chunk is None else f" chunk {self.chunk}"
        peer = "" if self.peer is None else f" {self.peer.short}"
        detail = f": {self.detail}" if self.detail else ""
        seconds = "" if self.seconds is None else f" ({self.seconds:.3f} s)"
        return f"{self.at:9.3f} {self.what}{chunk}{peer}{detail}{seconds}"


class Story:
    """The steps of one scheduler, and how often each kind of cause made it wait.

    Args:
        now: when it began, on the clock of all later times.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._first: list[Step] = []
        self._last: deque[Step] = deque(maxlen=_LAST_KEPT)
        self._idle_since: float | None = None
        self.left_out = 0
        """Steps between the first and the last that are not kept."""
        self.counts: Counter[What] = Counter()
        self.waits: Counter[str] = Counter()
        """How often a chunk had to wait, by cause."""
        self.idle_seconds = 0.0
        """In which chunks were wanted and nothing was under way."""

    @property
    def steps(self) -> Sequence[Step]:
        return [*self._first, *self._last]

    def add(
        self,
        now: float,
        what: What,
        chunk: int | None = None,
        peer: PeerId | None = None,
        detail: str = "",
        seconds: float | None = None,
    ) -> None:
        """One more step."""
        self.counts[what] += 1
        if what is What.WAITS:
            self.waits[detail] += 1
        step = Step(now - self._began, what, chunk, peer, detail[:_MAX_TEXT], seconds)
        if len(self._first) < _FIRST_KEPT:
            self._first.append(step)
            return
        self.left_out += len(self._last) == _LAST_KEPT
        self._last.append(step)

    def idle(self, now: float, is_idle: bool) -> None:
        """Whether chunks are wanted and nothing is under way, from now on."""
        if self._idle_since is not None:
            self.idle_seconds += max(now - self._idle_since, 0.0)
        self._idle_since = now if is_idle else None
