"""How many chunks to have in flight, found out by trying: `max_concurrent_retrievals = "auto"`.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), steered by goodput: one more is
tried, and kept while it pays; what does not pay is taken back, and tried again some windows later,
because links change. A timeout halves. Pure bookkeeping: the caller tells the time.
"""

from __future__ import annotations

FIRST_DEPTH = 4
LEAST_DEPTH = 2
MOST_DEPTH = 32
_WINDOWS_BETWEEN_TRIES = 4
_WORTH = 0.5
"""Of the gain that one more brings on a link bound by latency alone, the share it must bring."""


class AdaptiveDepth:
    """One get's depth. A window is twice as many arrivals as chunks are in flight, so that each
    slot has its say and chunks of different sizes even out."""

    def __init__(self, now: float) -> None:
        self.depth = FIRST_DEPTH
        self._trying = False
        self._wait = 0
        self._base = 0.0
        """Bytes per second at the depth that is to be beaten."""
        self._halved_at = float("-inf")
        self._begin_window(now)

    def arrived(self, nbytes: int, now: float) -> None:
        """A chunk of `nbytes` came from a peer."""
        self._bytes += nbytes
        self._arrivals += 1
        if self._arrivals < 2 * self.depth or now <= self._window_began:
            return
        self._judge(self._bytes / (now - self._window_began))
        self._begin_window(now)

    def timed_out(self, asked_at: float, now: float) -> None:
        """A request sent at `asked_at` was given up.

        Only the first of those that were under way together halves: they tell the same.
        """
        if asked_at < self._halved_at:
            return
        self._halved_at = now
        self.depth = max(self.depth // 2, LEAST_DEPTH)
        self._trying, self._wait = False, _WINDOWS_BETWEEN_TRIES
        self._begin_window(now)

    def _judge(self, goodput: float) -> None:
        if self._trying and goodput < self._base * (1 + _WORTH / (self.depth - 1)):
            self.depth -= 1
            self._trying, self._wait = False, _WINDOWS_BETWEEN_TRIES
            return
        self._base = goodput
        self._wait = max(self._wait - 1, 0)
        self._trying = self._wait == 0 and self.depth < MOST_DEPTH
        self.depth += self._trying

    def _begin_window(self, now: float) -> None:
        self._window_began = now
        self._bytes = 0
        self._arrivals = 0
