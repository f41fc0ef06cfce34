"""One peer as one transfer sees it: how fast, how busy, whether to be asked now."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ....dht.peer_id import PeerId
from .chunks import Chunk
from .vocabulary import Score, Why

PRESUMED_RATE = 10e6
PRESUMED_LATENCY = 0.05
"""Of a stranger: an ordinary peer on a local network."""

LEAST_DEPTH = 2
MOST_DEPTH = 64
STRANGER_DEPTH = 4
PIPELINE_SECONDS = 1.0
"""Of data that is asked of a peer in advance: hides any round trip worth speaking of, and leaves
little behind when the peer fails."""

_HALF_LIFE = 10.0
_PRIOR_SECONDS = 0.25
"""How much the statistics of earlier transfers weigh against what is seen in this one."""
_LEAST_RATE = 1.0
_LEAST_SERVICE_PER_BYTE = 1e-11
_LATENCIES = 64
_ENOUGH_LATENCIES = 8
_CREEP = 0.1
_LEAST_PENALTY = 1.0
_MOST_PENALTY = 60.0

HEDGE_FLOOR = 0.1
"""Seconds of silence below which nobody is late: a busy interpreter on either side takes some."""
_LATE_FACTOR = 2.0


@dataclass(slots=True, eq=False)
class Request:
    """One request under way."""

    id: int
    chunk: Chunk
    peer: Peer
    asked_at: float
    expected: float
    """Seconds it should take, as thought when it was asked."""
    why: Why
    charged: int = 0
    """Bytes of the hedge budget it holds."""
    started: bool = False
    """The first byte of its answer came."""
    received: int = 0
    heard_at: float = float("-inf")
    """When the last of it came."""

    @property
    def missing(self) -> int:
        return self.chunk.size - self.received


class ServiceRate:
    """Bytes per second that a peer serves, from the times between arrivals.

    A request's service begins when the one before it was complete, or one latency after it was
    asked for, whichever is later: round trips that pipelining hides do not count, and it does not
    matter in how many parts bytes come. Old service fades (half-life 10 s of service).
    """

    __slots__ = ("_bytes", "_last", "_seconds")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._last = float("-inf")

    def add(self, nbytes: int, asked_at: float, latency: float, now: float) -> None:
        seconds = max(
            now - max(self._last, asked_at + latency), nbytes * _LEAST_SERVICE_PER_BYTE, 0.0
        )
        fade = 0.5 ** (seconds / _HALF_LIFE)
        self._bytes = self._bytes * fade + nbytes
        self._seconds = self._seconds * fade + seconds
        self._last = max(self._last, now)

    def rate(self, prior: float | None) -> float | None:
        if prior is None:
            return self._bytes / self._seconds if self._seconds else None
        total = self._bytes + prior * _PRIOR_SECONDS
        return total / (self._seconds + _PRIOR_SECONDS)


class Peer:
    """State and judgement."""

    def __init__(self, peer: PeerId) -> None:
        self.id = peer
        self.requests: dict[int, Request] = {}
        """Under way, in the order they were asked."""
        self.asked_bytes = 0
        """Whole sizes of the requests under way."""
        self.missing_bytes = 0
        """What has not come of them yet."""
        self.times_asked = 0
        self.heard_at = float("-inf")
        self.shed = ""
        """Why it is never asked again in this transfer."""
        self.left = False
        self.resting_until = float("-inf")
        self.times_busy = 0
        """In a row."""
        self.on_probation = False
        """Failed last time: one request at a time until it delivers."""
        self.penalty = 0.0
        """Seconds it is thought to be slower by, because it was silent when it should not have
        been; until it delivers."""
        self.busy_cap: float | None = None
        """Requests at once that it last was content with; creeps up while it delivers."""
        self._service = ServiceRate()
        self._silences: deque[float] = deque(maxlen=_LATENCIES)
        self._p95: float | None = None
        """Of its silences, once there are enough."""
        self._base_latency: float | None = None
        self._score: Score | None = None
        self._prior: float | None = None
        self._rate: float | None = None
        self._foreign = 0
        self.allowed = True

    # --- once per step ---

    def look(self, score: Score) -> None:
        """Take the statistics as they are now."""
        self._score = score
        self._prior = score.throughput
        self.allowed = score.allows()
        self._foreign = max(score.in_flight_bytes - self.asked_bytes, 0)
        self._rate = self._service.rate(self._prior)

    @property
    def last_error(self) -> str:
        return self._score.last_error if self._score is not None else ""

    @property
    def retry_in(self) -> float:
        return self._score.retry_in if self._score is not None else 0.0

    # --- what is expected ---

    @property
    def is_known(self) -> bool:
        """Whether its rate was ever measured."""
        return self._rate is not None

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return PRESUMED_RATE if self._rate is None else max(self._rate, _LEAST_RATE)

    @property
    def latency(self) -> float:
        known = None if self._score is None else self._score.latency
        if self._base_latency is not None:
            return self._base_latency if known is None else min(known, self._base_latency)
        return PRESUMED_LATENCY if known is None else known

    def finish_seconds(self, size: int) -> float:
        """(queued + size) / rate + latency, and more while it has something to make good."""
        queued = self.missing_bytes + self._foreign
        return (queued + size) / self.rate + self.latency + self.penalty

    def hedge_after(self, response_timeout: float) -> float:
        """Seconds of silence after which it is late: twice the 95th percentile of its silences."""
        p95 = self._p95
        if p95 is None and self._score is not None:
            p95 = self._score.latency_p95
        if p95 is None:
            return response_timeout
        return min(max(_LATE_FACTOR * p95, HEDGE_FLOOR), response_timeout)

    def quiet_at(self, response_timeout: float) -> float:
        """When it will be late with everything it was asked for, if nothing comes before."""
        if not self.requests:
            return float("inf")
        oldest = next(iter(self.requests.values())).asked_at
        return max(oldest, self.heard_at) + self.hedge_after(response_timeout)

    def bytes_before(self, request: Request) -> int:
        """What it has to send until `request` is complete."""
        total = 0
        for other in self.requests.values():
            total += other.missing
            if other is request:
                break
        return total

    def has_room(self, size: int, chunk_timeout: float) -> bool:
        """Whether one more request may go to it now: about a second of data, 2 to 64 requests."""
        depth = len(self.requests)
        if depth == 0:
            return True
        if self.on_probation or (self.busy_cap is not None and depth >= int(self.busy_cap)):
            return False
        if self._rate is None:
            return depth < STRANGER_DEPTH
        if self.finish_seconds(size) > 0.8 * chunk_timeout:
            return False  # it would time out while it waits for those before it
        if depth < LEAST_DEPTH:
            return True
        ahead = self.asked_bytes + size
        return depth < MOST_DEPTH and ahead <= self.rate * PIPELINE_SECONDS

    # --- what happens ---

    def began(self, request: Request) -> None:
        self.requests[request.id] = request
        self.asked_bytes += request.chunk.size
        self.missing_bytes += request.chunk.size
        self.times_asked += 1

    def ended(self, request: Request) -> None:
        del self.requests[request.id]
        self.asked_bytes -= request.chunk.size
        self.missing_bytes -= request.missing

    def came(self, request: Request, received: int, at: float) -> None:
        """Bytes of an answer, its first one perhaps."""
        self.missing_bytes -= received - request.received
        request.received = received
        if not request.started:
            request.started = True
            self._first_byte(request.asked_at, at)
        request.heard_at = at
        self.heard_at = max(self.heard_at, at)

    def _first_byte(self, asked_at: float, at: float) -> None:
        silence = max(at - max(asked_at, self.heard_at), 0.0)
        self._silences.append(silence)
        if len(self._silences) >= _ENOUGH_LATENCIES:
            self._p95 = sorted(self._silences)[int(0.95 * (len(self._silences) - 1))]
        if asked_at >= self.heard_at:  # nothing else was under way: this is the round trip
            base = self._base_latency
            self._base_latency = silence if base is None else min(base, silence)

    def served(self, request: Request, at: float) -> None:
        """It worked on a request until `at`, whether the whole body came or not."""
        self._service.add(request.received, request.asked_at, self.latency, at)

    def delivered(self) -> None:
        self.on_probation = False
        self.penalty = 0.0
        self.times_busy = 0
        if self.busy_cap is not None:
            self.busy_cap += _CREEP / self.busy_cap

    def was_silent(self) -> None:
        """Another peer delivered what it was late with, before it sent anything."""
        self.on_probation = True
        self.penalty = min(max(2 * self.penalty, _LEAST_PENALTY), _MOST_PENALTY)

    def said_busy(self, until: float) -> None:
        """It asked to be left alone until then, after its request was taken off."""
        # It served the others: that many are what it takes.
        self.busy_cap = float(max(len(self.requests), 1))
        self.resting_until = max(self.resting_until, until)

    def available(self, now: float) -> bool:
        return not (self.shed or self.left) and self.allowed and now >= self.resting_until

    def is_idle(self, now: float) -> bool:
        """Without work, and to be asked."""
        return not self.requests and self.available(now)

    def is_resting(self, now: float) -> bool:
        """Well, and asked to be left alone."""
        return not (self.shed or self.left) and self.allowed and now < self.resting_until
