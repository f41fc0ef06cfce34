"""What each query did: who was asked, who answered or failed and why, and how long it took.

A report is made for every query and announcement, returned with its result, and the last ones are
kept for whoever asks afterwards why something was slow. Bounded in entries and in reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from ..errors import MeshError, PeerRefusedError
from .peer_id import PeerId

Outcome = Literal["answered", "stored", "refused", "failed", "unanswered"]
"""`unanswered`: the query ended before this peer answered or failed."""

_KEPT_OF_CALLERS = 96
_KEPT_OF_UPKEEP = 32
_MAX_PEERS = 64
_MAX_REASON_CHARS = 160


@dataclass(frozen=True, slots=True)
class PeerAsked:
    """One request of a query. `seconds` until it ended, or until the query did."""

    peer: PeerId
    outcome: Outcome
    reason: str
    """Why it was refused or failed; empty otherwise."""
    seconds: float
    hop: int
    """Answers that led to this peer; 0: known beforehand."""
    path: int
    """Which of the disjoint paths asked it."""
    keys: int


@dataclass(frozen=True, slots=True)
class QueryReport:
    """What one query did. Times in seconds; `began` is Unix time by our clock."""

    kind: str
    key: bytes
    """The key, as on the wire; the first one of a batch."""
    keys: int
    began: float
    seconds: float
    hops: int
    paths: int
    found: int
    """Keys that were found, or that somebody stored."""
    asked: int
    peers: tuple[PeerAsked, ...]
    """At most 64 of the requests: all that went wrong first, then in the order of asking."""

    def count(self, outcome: Outcome) -> int:
        """Listed requests that ended in `outcome`."""
        return sum(1 for entry in self.peers if entry.outcome == outcome)


@dataclass(slots=True)
class Request:
    """A request under way; it counts as unanswered until it is said to have ended."""

    peer: PeerId
    hop: int
    path: int
    keys: int
    began: float
    outcome: Outcome = "unanswered"
    reason: str = ""
    ended: float | None = None

    def end(self, outcome: Outcome, reason: str = "") -> None:
        self.outcome, self.reason = outcome, reason[:_MAX_REASON_CHARS]
        self.ended = trio.current_time()

    def fail(self, error: BaseException) -> None:
        """It ended in `error`; an abandoned one stays unanswered."""
        if isinstance(error, PeerRefusedError):
            self.end("refused", error.reason)
        elif isinstance(error, MeshError):
            self.end("failed", error.message)
        elif isinstance(error, Exception):
            self.end("failed", repr(error))


@dataclass(slots=True)
class Trace:
    """One query under way. `close` makes the report; what happens later is not in it."""

    kind: str
    key: bytes
    keys: int
    began: float
    _keep: Callable[[QueryReport], None]
    _started: float = field(default_factory=trio.current_time)
    _requests: list[Request] = field(default_factory=list)

    @contextmanager
    def asking(
        self, peer: PeerId, *, hop: int = 0, path: int = 0, keys: int = 1
    ) -> Iterator[Request]:
        """A request to `peer` for the length of the block; answered if it ends without error."""
        request = Request(peer, hop, path, keys, trio.current_time())
        self._requests.append(request)
        try:
            yield request
        except BaseException as error:
            request.fail(error)
            raise
        if request.ended is None:
            request.end("answered")

    def close(self, *, found: int, hops: int = 0, paths: int = 1) -> QueryReport:
        now = trio.current_time()
        listed = self._requests
        if len(listed) > _MAX_PEERS:
            listed = sorted(listed, key=lambda r: r.outcome in ("answered", "stored"))
        report = QueryReport(
            self.kind,
            self.key,
            self.keys,
            self.began,
            now - self._started,
            hops,
            paths,
            found,
            len(self._requests),
            tuple(_entry(request, now) for request in listed[:_MAX_PEERS]),
        )
        self._keep(report)
        return report


def _entry(request: Request, now: float) -> PeerAsked:
    ended = now if request.ended is None else request.ended
    return PeerAsked(
        request.peer,
        request.outcome,
        request.reason,
        ended - request.began,
        request.hop,
        request.path,
        request.keys,
    )


class Traces:
    """The last reports: those of callers, and fewer of what the DHT does by itself."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._of_callers: deque[QueryReport] = deque(maxlen=_KEPT_OF_CALLERS)
        self._of_upkeep: deque[QueryReport] = deque(maxlen=_KEPT_OF_UPKEEP)

    def begin(self, kind: str, key: bytes, keys: int = 1, *, upkeep: bool = False) -> Trace:
        ring = self._of_upkeep if upkeep else self._of_callers
        return Trace(kind, key, keys, self._wall_clock(), ring.append)

    def recent(self) -> list[QueryReport]:
        """The kept reports, oldest first."""
        return sorted([*self._of_upkeep, *self._of_callers], key=lambda report: report.began)
