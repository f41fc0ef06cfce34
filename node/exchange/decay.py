"""Estimators that forget: what a peer did lately counts more than what it did long ago.

All are plain arithmetic on the caller's clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable


class DecayedMean:
    """Weighted mean in which a sample's weight halves every `half_life` seconds.

    Equal to sum(w * x) / sum(w) with w = weight * 2 ** (-age / half_life): the forward-decay form
    (Cormode et al., 2009) needs two numbers and no list of samples.
    """

    __slots__ = ("_at", "_half_life", "_sum", "_weight")

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._sum = 0.0
        self._weight = 0.0
        self._at = -math.inf

    def add(self, total: float, weight: float, now: float) -> None:
        """Add `weight` worth of samples whose weighted sum is `total`."""
        if now > self._at:
            fade = 0.0 if self._weight == 0.0 else 0.5 ** ((now - self._at) / self._half_life)
            self._sum *= fade
            self._weight *= fade
            self._at = now
        self._sum += total
        self._weight += weight

    def mean(self) -> float | None:
        """None before the first sample. Does not change while nothing is added."""
        return self._sum / self._weight if self._weight > 0.0 else None

    def state(self) -> tuple[float, float]:
        """(sum, weight), for `restore`."""
        return self._sum, self._weight

    def restore(self, total: float, weight: float, now: float) -> None:
        self._sum, self._weight, self._at = total, weight, now


class SampleWindow:
    """The last `size` samples: an exact quantile over a bounded past."""

    __slots__ = ("_samples",)

    def __init__(self, size: int) -> None:
        self._samples: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        self._samples.append(sample)

    def extend(self, samples: Iterable[float]) -> None:
        self._samples.extend(samples)

    def samples(self) -> tuple[float, ...]:
        """Oldest first."""
        return tuple(self._samples)

    def mean(self) -> float | None:
        return math.fsum(self._samples) / len(self._samples) if self._samples else None

    def quantile(self, share: float) -> float | None:
        """The smallest sample that at least `share` of the samples do not exceed."""
        if not self._samples:
            return None
        ranked = sorted(self._samples)
        return ranked[max(math.ceil(share * len(ranked)) - 1, 0)]


class RateMeter:
    """Bytes per second over the time in which something was under way, lately.

    Several transfers at once share the time they overlap, so the result is what the peer delivers
    altogether, not what one of its transfers gets.
    """

    __slots__ = ("_active", "_clock", "_rate", "_since")

    # Bytes that were already in our buffers take almost no time to read: no rate above this is
    # believed (100 GB/s), which also keeps the mean finite.
    _LEAST_SECONDS_PER_BYTE = 1e-11

    def __init__(self, half_life: float, clock: Callable[[], float]) -> None:
        self._rate = DecayedMean(half_life)
        self._clock = clock
        self._active = 0
        self._since = 0.0

    def began(self) -> None:
        if self._active == 0:
            self._since = self._clock()
        self._active += 1

    def ended(self, received: int, *, counts: bool = True) -> None:
        """One transfer is over, whole or not, after `received` bytes.

        One that does not count was held up by ourselves: neither its bytes nor its time tell
        anything.
        """
        now = self._clock()
        if not counts:
            self._since = now
            self._active -= 1
            return
        seconds = max(now - self._since, received * self._LEAST_SECONDS_PER_BYTE)
        self._since = max(now, self._since)
        self._active -= 1
        if received or seconds:
            self._rate.add(float(received), seconds, now)

    def rate(self) -> float | None:
        """None before anything was measured; may be 0.0 when time passed and nothing came."""
        return self._rate.mean()

    def state(self) -> tuple[float, float]:
        return self._rate.state()

    def restore(self, received: float, seconds: float) -> None:
        self._rate.restore(received, seconds, self._clock())
