"""Who may move how many bytes now, in one direction: limits, lanes and fairness. Pure.

Three rules. Nothing goes above the limits (of the node, of each peer). A lane yields while a higher
one is in use, but for a share: `LEAST_SHARE` of what the line is known to bear. Inside a lane the
peers take turns, slice by slice, so that one that asks for much delays nobody else.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .byte_rates import LEAST_SLICE, SAVED_SECS, ByteBucket, FlowMeter
from .lanes import LANES, LEAST_SHARE, Lane

LINGER_SECS = 0.2
"""A lane counts as in use for so long after its last byte: chunks follow one another with gaps."""
_LEAST_YIELD = 64.0 * 1024
"""Bytes per second below which peers take a body for stalled; on a line that bears little more, a
quarter of it."""
_UNKNOWN_YIELD = 16.0 * 1024
_MAX_BUCKETS = 1024


@dataclass(slots=True, eq=False)
class Ticket:
    """A wish to move up to `size` bytes; `granted` is None as long as it waits."""

    peer: bytes
    lane: Lane
    size: int
    on_grant: Callable[[], None] = lambda: None
    granted: int | None = None


@dataclass(slots=True, eq=False)
class _LaneLine:
    """Those who wait in one lane, by peer; the first peer is next."""

    peers: OrderedDict[bytes, deque[Ticket]] = field(default_factory=OrderedDict)
    bodies: int = 0
    """Bodies on the way in this lane."""
    in_flight: int = 0
    """Bytes granted and not landed; counted only where `cap` is given."""
    ended_at: float = -math.inf


class Shaper:
    """See the module.

    Args:
        whole: grants are whole sizes, however large, and not slices.
        cap: for grants that are landed later, how many bytes may be in flight in a lane and those
            below it; one grant always may.
        slice_bytes: largest grant, when not `whole`.
        lanes: whether lower ones yield; else they differ by their caps only.
    """

    def __init__(
        self,
        now: float,
        *,
        whole: bool = False,
        cap: Callable[[Lane, float], float] | None = None,
        slice_bytes: int,
        lanes: bool = True,
    ) -> None:
        self.meter = FlowMeter(now)
        self._whole = whole
        self._yielding = lanes
        self._cap = cap
        self._slice = slice_bytes
        self._total: ByteBucket | None = None
        self._per_peer = 0.0
        self._buckets: dict[bytes, ByteBucket] = {}
        self._shares = {lane: ByteBucket(_UNKNOWN_YIELD, now) for lane in LANES if lane.yields}
        self._lines = {lane: _LaneLine() for lane in LANES}
        self._limited = False
        self._waiting = 0

    # --- limits ---

    @property
    def limit(self) -> float:
        """Bytes per second for all together; infinite without a limit."""
        return math.inf if self._total is None else self._total.rate

    @property
    def peer_limit(self) -> float:
        return self._per_peer or math.inf

    def set_limits(self, total: float, per_peer: float, now: float) -> None:
        """Bytes per second from `now` on; 0: no limit."""
        if not total:
            self._total = None
        elif self._total is None:
            self._total = ByteBucket(total, now)
        else:
            self._total.set_rate(total, now)
        self._per_peer = per_peer
        if per_peer:
            for bucket in self._buckets.values():
                bucket.set_rate(per_peer, now)
        else:
            self._buckets.clear()
        self._limited = bool(total or per_peer)

    def _bucket(self, peer: bytes, now: float) -> ByteBucket | None:
        if not self._per_peer:
            return None
        bucket = self._buckets.get(peer)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                full = [p for p, b in self._buckets.items() if b.is_full(now)]
                for known in full:
                    del self._buckets[known]
            bucket = self._buckets[peer] = ByteBucket(self._per_peer, now)
        return bucket

    # --- what is on the way ---

    def began(self, lane: Lane) -> None:
        """A body is on the way in `lane`, perhaps waiting."""
        self._lines[lane].bodies += 1

    def ended(self, lane: Lane, now: float) -> None:
        line = self._lines[lane]
        line.bodies -= 1
        line.ended_at = now

    def yields_until(self, lane: Lane, now: float) -> float:
        """Until when `lane` has to yield: not after `now` if it has not to, infinite if nobody
        knows yet."""
        until = -math.inf
        for higher in LANES[:lane] if self._yielding else ():
            line = self._lines[higher]
            if line.bodies:
                return math.inf
            until = max(until, line.ended_at + LINGER_SECS)
        return until

    def passes(self, lane: Lane, now: float) -> bool:
        """Whether a slice may move at once and uncharged: no limit, and nobody to yield to."""
        return not self._limited and (not lane or self.yields_until(lane, now) <= now)

    def share(self, lane: Lane, now: float) -> float:
        """Bytes per second that `lane` gets while it yields."""
        bears = min(self.meter.best(now), self.limit)
        # After a long rest nothing is known any more, and little is no sign of a bad line.
        return max(bears * LEAST_SHARE, min(bears / 4, _LEAST_YIELD), _UNKNOWN_YIELD)

    # --- tickets ---

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def in_flight(self) -> int:
        """Bytes that wait, or were granted and have not landed."""
        lines = self._lines.values()
        tickets = (t for line in lines for queue in line.peers.values() for t in queue)
        return sum(t.size for t in tickets) + sum(line.in_flight for line in lines)

    def take_now(self, lane: Lane, size: int, now: float) -> int:
        """Grant a slice that needs no ticket; 0: it needs one."""
        if not self.passes(lane, now) or (self._cap is not None and lane.yields):
            return 0
        if self._cap is not None:
            self._lines[lane].in_flight += size
        return size if self._whole else min(size, self._slice)

    def add(self, ticket: Ticket) -> None:
        """Let `ticket` wait; `grant` decides."""
        self._lines[ticket.lane].peers.setdefault(ticket.peer, deque()).append(ticket)
        self._waiting += 1

    def remove(self, ticket: Ticket) -> None:
        """`ticket` waits no longer, granted nothing."""
        peers = self._lines[ticket.lane].peers
        peers[ticket.peer].remove(ticket)
        if not peers[ticket.peer]:
            del peers[ticket.peer]
        self._waiting -= 1

    def charge(self, peer: bytes, size: int, now: float) -> None:
        """`size` bytes move that nobody waited for (negative: fewer moved than were granted)."""
        if self._total is not None:
            self._total.take(size, now)
        if (bucket := self._bucket(peer, now)) is not None:
            bucket.take(size, now)

    def landed(self, lane: Lane, size: int) -> None:
        """A grant of `size` bytes is in flight no longer."""
        if self._cap is not None:
            self._lines[lane].in_flight -= size

    def grant(self, now: float) -> float:
        """Grant what may move now; returns when to ask again (infinite: when something changes)."""
        while self._waiting:
            found, at = self._next(now)
            if found is None:
                return at
            self._give(found, now)
        return math.inf

    def backlog(self, lane: Lane, now: float) -> float:
        """Seconds until a new ticket in `lane`, of a new peer, could be granted its first slice."""
        peers = sum(len(self._lines[other].peers) for other in LANES[: lane + 1])
        if self.passes(lane, now) or not peers:
            return 0.0
        rate = self.limit
        if self.yields_until(lane, now) > now:
            rate = min(rate, self.share(lane, now))
        return peers * self._slice_for(rate) / rate if rate < math.inf else 0.0

    def _slice_for(self, rate: float) -> int:
        if rate == math.inf:
            return self._slice
        return max(min(int(rate * SAVED_SECS), self._slice), LEAST_SLICE)

    def _give(self, ticket: Ticket, now: float) -> None:
        line = self._lines[ticket.lane]
        rate, yields = min(self.limit, self.peer_limit), self.yields_until(ticket.lane, now) > now
        if yields:
            rate = min(rate, self.share(ticket.lane, now))
        size = ticket.size if self._whole else min(ticket.size, self._slice_for(rate))
        if yields:
            self._shares[ticket.lane].take(size, now)
        self.charge(ticket.peer, size, now)
        self.remove(ticket)
        if ticket.peer in line.peers:
            line.peers.move_to_end(ticket.peer)
        if self._cap is not None:
            line.in_flight += size
        ticket.granted = size
        ticket.on_grant()

    def _next(self, now: float) -> tuple[Ticket | None, float]:
        """The ticket to grant now, or None and when there may be one."""
        at = math.inf
        free = now if self._total is None else self._total.ready_at(now)
        # Those that have to yield come first with their share: what is left is for the others. One
        # that has not to yield finds nobody above it.
        for lane in reversed(LANES):
            if not self._lines[lane].peers:
                continue
            until = self.yields_until(lane, now)
            yielding = until > now
            ready = free
            if yielding:
                bucket = self._shares[lane]
                bucket.set_rate(self.share(lane, now), now)
                ready = max(free, min(bucket.ready_at(now), until))
            for ticket in self._candidates(lane, now):
                own = self._bucket(ticket.peer, now)
                when = ready if own is None else max(ready, own.ready_at(now))
                if when <= now:
                    return ticket, now
                at = min(at, when)
        return None, at

    def _candidates(self, lane: Lane, now: float) -> Iterator[Ticket]:
        """The first of each peer, in turn, as far as there is room in flight."""
        line = self._lines[lane]
        room = math.inf
        if self._cap is not None:
            flying = sum(self._lines[other].in_flight for other in LANES[lane:])
            room = self._cap(lane, now) - flying if flying else math.inf
        for waiting in line.peers.values():
            if waiting[0].size <= room:
                yield waiting[0]
