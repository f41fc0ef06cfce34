"""What goes into the scheduler and what comes out: plain values, no clock, no tasks.

Chunks are numbers from 0 in the order their bytes are needed; requests are numbers that the
scheduler gives out and never uses twice. Times are seconds on one clock, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ....dht.peer_id import PeerId


class Fault(StrEnum):
    """How a request failed."""

    ABSENT = "absent"
    """The peer is well, and does not have the chunk."""
    REFUSED = "refused"
    """The peer is well, and will not give this chunk."""
    BUSY = "busy"
    """The peer is well, and asks to come back later."""
    FAILED = "failed"
    """Unreachable, cut off, or it spoke nonsense."""
    TIMED_OUT = "timed out"
    CORRUPT = "corrupt"
    """It sent bytes that are not the chunk."""


class Why(StrEnum):
    """Why a peer is asked for a chunk."""

    FIRST = "first"
    RETRY = "retry"
    HEDGE = "hedge"
    """A second request beside one that is late."""
    ENDGAME = "endgame"
    """A second request beside one of the last that are under way."""
    STOLEN = "stolen"
    """Taken from a peer that had not begun to send it."""


# --- what happened ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A lookup came back: holders of each chunk that was asked for; `here` need none."""

    holders: Mapping[int, Sequence[PeerId]]
    here: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Came:
    """So much of a request's body has come by now; `received` is 0 with the first byte of an
    answer. `at` is when the last of it came."""

    request: int
    received: int
    at: float


@dataclass(frozen=True, slots=True)
class Verified:
    """A chunk is here, checked and used; `request` is None when it was read from this node."""

    chunk: int
    request: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A request ended without its chunk."""

    request: int
    fault: Fault
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class HereFailed:
    """A chunk that should be on this node could not be read."""

    chunk: int


@dataclass(frozen=True, slots=True)
class PeerJoined:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerLeft:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Moved:
    """The reader is elsewhere: chunks from `first` up to (not with) `stop` are wanted now, in
    this order, and no others. `again` were verified before and are needed once more."""

    first: int
    stop: int
    again: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nobody wants anything any more."""


Event = Found | Came | Verified | Failed | HereFailed | PeerJoined | PeerLeft | Moved | Stopped


# --- what to do -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `peer` for a chunk."""

    request: int
    chunk: int
    peer: PeerId
    why: Why


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a request up. What becomes of it is not waited for."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReadHere:
    """Read a chunk from this node."""

    chunk: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Find out who holds these chunks; `fresh`: from the DHT and every live member, because those
    known before did not deliver."""

    chunks: tuple[int, ...]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer that was said to hold a chunk answered in the end."""

    reason: str
    absent: bool = False
    """It is well, and does not have the chunk."""
    busy: bool = False
    """It is well, and asks to come back later."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A chunk nobody delivered, and the last answer of everybody who was asked for it."""

    chunk: int
    answers: Mapping[PeerId, Answer]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It cannot be completed. Comes last; everything under way was cancelled before."""

    lost: tuple[Lost, ...]
    untried: int
    """Chunks that were never begun because of it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Every chunk is verified (or nobody wants the rest). Comes last."""


Decision = Ask | Cancel | ReadHere | LookUp | GiveUp | Finished


# --- what it is told about peers --------------------------------------------------------------


class Score(Protocol):
    """What was learned about one peer so far: `exchange.PeerStats`."""

    @property
    def latency(self) -> float | None: ...

    @property
    def latency_p95(self) -> float | None: ...

    @property
    def throughput(self) -> float | None: ...

    @property
    def in_flight_bytes(self) -> int:
        """Of everybody's requests to this peer."""
        ...

    @property
    def last_error(self) -> str: ...

    @property
    def retry_in(self) -> float:
        """Seconds until an open breaker lets a probe through."""
        ...

    def allows(self) -> bool:
        """Whether the breaker lets a request go now."""
        ...


class Scores(Protocol):
    """The scores of all peers: `exchange.PeerStatsTable`."""

    def __getitem__(self, peer: PeerId, /) -> Score: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What one transfer may do."""

    most_chunks: int | None = 8
    """Chunks in flight; None: found out by trying."""
    most_bytes: int = 64 << 20
    """Bytes in flight, a single chunk of any size excepted."""
    rounds: int = 4
    """How often all holders of a chunk are tried."""
    response_timeout: float = 5.0
    """Seconds of silence after which any peer is late."""
    chunk_timeout: float = 10.0
    prefer_fast: bool = True
    first_window: int = 64
    window: int = 1024
    """Chunks looked up at once."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a transfer came to so far."""

    requests: int = 0
    hedges: int = 0
    steals: int = 0
    retries: int = 0
    hedged_bytes: int = 0
    """What was asked for twice, as far as it may have come twice."""
