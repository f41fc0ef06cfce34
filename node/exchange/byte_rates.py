"""Bytes per second: a limit that is kept, a rate that is measured. Pure: times are passed in."""

from __future__ import annotations

import math

SAVED_SECS = 0.1
LEAST_SLICE = 16 * 1024
"""Smallest grant: below it, the work of each costs more than smoothness is worth."""
_RATE_SECS = 2.0
_FADE_SECS = 0.02
_BEST_HALF_LIFE_SECS = 60.0


class ByteBucket:
    """`rate` bytes per second. Whoever finds it not empty may take more than is in it, and the next
    waits until that is paid off: so a grant of any size is possible, and the mean is exact.

    At most `SAVED_SECS` of the rate are saved up (but one `LEAST_SLICE`).
    """

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._at = now
        self._tokens = self._most

    @property
    def rate(self) -> float:
        return self._rate

    @property
    def _most(self) -> float:
        return max(self._rate * SAVED_SECS, float(LEAST_SLICE))

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._tokens + (now - self._at) * self._rate, self._most)
            self._at = now

    def set_rate(self, rate: float, now: float) -> None:
        """From `now` on; what was saved or is owed stays (in bytes)."""
        self._refill(now)
        self._rate = rate

    def ready_at(self, now: float) -> float:
        """When the next grant may be made: `now`, or later."""
        self._refill(now)
        return now if self._tokens > 0.0 else now + (1.0 - self._tokens) / self._rate

    def take(self, size: float, now: float) -> None:
        """Charge `size` bytes; a negative size gives back what was charged too much."""
        self._refill(now)
        self._tokens = min(self._tokens - size, self._most)

    def is_full(self, now: float) -> bool:
        self._refill(now)
        return self._tokens >= self._most


class FlowMeter:
    """What flows now, and the most that flowed lately."""

    __slots__ = ("_at", "_best", "_sum", "total")

    def __init__(self, now: float) -> None:
        self._at = now
        self._sum = 0.0
        self._best = 0.0
        self.total = 0
        """Bytes since the start."""

    def add(self, size: int, now: float) -> None:
        if now > self._at + _FADE_SECS:  # this is called for every slice of every body
            self._fade(now)
        self.total += size
        self._sum += size
        self._best = max(self._best, self._sum / _RATE_SECS)

    def _fade(self, now: float) -> None:
        if now > self._at:
            secs = now - self._at
            self._sum *= math.exp(-secs / _RATE_SECS)
            self._best *= 0.5 ** (secs / _BEST_HALF_LIFE_SECS)
            self._at = now

    def rate(self, now: float) -> float:
        """Bytes per second over about the last `_RATE_SECS`."""
        self._fade(now)
        return self._sum / _RATE_SECS

    def best(self, now: float) -> float:
        """The highest `rate` of the last minute or so: what the line is known to bear."""
        self._fade(now)
        return self._best
