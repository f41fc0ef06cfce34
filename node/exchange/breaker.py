"""Circuit breaker: stop asking a peer that keeps failing, and find out cheaply when it is back.

Closed: everything goes. After `threshold` failures in a row it opens for a time that doubles with
every failed probe. When that time is over it is half-open: one probe may go; its success closes
the breaker, its failure opens it for longer. (M. Nygard, "Release It!", 2007.)
"""

from __future__ import annotations

from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """See the module. Times are seconds on the caller's clock."""

    __slots__ = (
        "_base",
        "_cap",
        "_open_until",
        "_probe_until",
        "_threshold",
        "failures",
        "trips",
    )

    def __init__(self, *, threshold: int = 3, base: float = 1.0, cap: float = 60.0) -> None:
        self._threshold = threshold
        self._base = base
        self._cap = cap
        self._open_until = 0.0
        self._probe_until = 0.0
        self.failures = 0
        """Failures in a row."""
        self.trips = 0
        """How often it opened since it was last closed; 0 = closed."""

    def state(self, now: float) -> BreakerState:
        if self.trips == 0:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def retry_at(self) -> float | None:
        """When an open breaker becomes half-open; None when closed."""
        return self._open_until if self.trips else None

    def allows(self, now: float) -> bool:
        """Whether a request may go now; changes nothing."""
        state = self.state(now)
        return state is BreakerState.CLOSED or (
            state is BreakerState.HALF_OPEN and now >= self._probe_until
        )

    def began(self, now: float) -> None:
        """A request goes out; while half-open it is the probe that others wait for."""
        if self.state(now) is BreakerState.HALF_OPEN:
            # A probe that is never heard of again must not keep the breaker half-open for ever.
            self._probe_until = now + self._open_secs()

    def succeeded(self) -> None:
        self.failures = self.trips = 0
        self._open_until = self._probe_until = 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        state = self.state(now)
        # Requests that were under way when it opened tell nothing new.
        trips = state is BreakerState.HALF_OPEN or (
            state is BreakerState.CLOSED and self.failures >= self._threshold
        )
        if trips:
            self.trip(now)

    def trip(self, now: float) -> None:
        """Open at once, for longer than the last time."""
        self.trips += 1
        self._open_until = now + self._open_secs()
        self._probe_until = 0.0

    def restore(self, failures: int, trips: int) -> None:
        """After a restart an open breaker is half-open: the time meanwhile is unknown."""
        self.failures, self.trips = failures, trips

    def _open_secs(self) -> float:
        return min(self._base * 2.0 ** min(self.trips - 1, 30), self._cap)
