"""Exponential backoff with full jitter.

Each wait is uniform between zero and a bound that doubles from `base` to `cap`: of the variants
compared in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), full jitter does the
least work and takes about the shortest time when many clients contend.
"""

from __future__ import annotations

import random


class Backoff:
    """The waits of one thing that is tried again and again.

    Args:
        base: bound of the first wait, seconds.
        cap: bound of every wait, seconds.
        rng: source of the jitter; seed it to make a run repeatable.
    """

    def __init__(
        self, *, base: float = 0.1, cap: float = 10.0, rng: random.Random | None = None
    ) -> None:
        if not 0 < base <= cap:
            raise ValueError("base must be positive and at most cap")
        self._base = base
        self._cap = cap
        self._rng = rng or random.Random()
        self._bound = base

    def next(self, *, at_least: float | None = None) -> float:
        """Seconds to wait before the next try.

        Args:
            at_least: a peer's retry-after in seconds. It is honoured (up to `cap`), and the jitter
                comes on top, so that all who were refused at once do not come back at once.
        """
        wait = self._rng.uniform(0.0, self._bound)
        self._bound = min(self._bound * 2, self._cap)
        return wait + min(at_least, self._cap) if at_least else wait

    def reset(self) -> None:
        """Start over, after a success."""
        self._bound = self._base
