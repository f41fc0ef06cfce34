"""How many chunks to have in flight, found out by trying: `"auto"`.

Slow start, then additive increase and multiplicative decrease (Jacobson, 1988; Chiu and Jain,
1989), steered by goodput instead of loss: twice as many are tried as long as that pays, then a few
more at a time; what does not pay is taken back, and tried again some windows later, because links
change. A timeout halves. Pure bookkeeping: the caller tells the time.
"""

from __future__ import annotations

FIRST_DEPTH = 8
LEAST_DEPTH = 2
MOST_DEPTH = 64
_WINDOWS_BETWEEN_TRIES = 4
_CAUTIOUS_SECONDS = 10.0
_WORTH = 0.5
"""Of the gain that more brings on a link bound by latency alone, the share it must bring."""


class AdaptiveDepth:
    """One transfer's depth. A window is twice as many arrivals as chunks are in flight: each
    slot has its say, and chunks of different sizes even out."""

    def __init__(self, now: float) -> None:
        self.depth = FIRST_DEPTH
        self._slow_start = True
        self._before: int | None = None
        """The depth that is to be beaten by the present one."""
        self._wait = 0
        self._base = 0.0
        """Bytes per second at that depth."""
        self._halved_at = float("-inf")
        self._window_began: float | None = None
        """None: begins with the next arrival, when the pipe is full."""
        self._bytes = 0
        self._arrivals = 0

    def arrived(self, nbytes: int, now: float) -> None:
        """A chunk of `nbytes` came from a peer."""
        if self._window_began is None:
            self._window_began = now
            return
        self._bytes += nbytes
        self._arrivals += 1
        if self._arrivals < 2 * self.depth or now <= self._window_began:
            return
        self._judge(self._bytes / (now - self._window_began))
        # What arrives right after a change was asked for before it.
        self._begin_window(None if self._before is not None else now)

    def timed_out(self, asked_at: float, now: float) -> None:
        """A request sent at `asked_at` was given up.

        Only the first of those that were under way together halves: they tell the same.
        """
        if asked_at < self._halved_at:
            return
        self._halved_at = now
        self.depth = max(self.depth // 2, LEAST_DEPTH)
        self._slow_start = False
        self._before, self._wait = None, _WINDOWS_BETWEEN_TRIES
        self._begin_window(None)

    def recently_halved(self, now: float) -> bool:
        """Whether requests were given up a moment ago."""
        return now < self._halved_at + _CAUTIOUS_SECONDS

    def _judge(self, goodput: float) -> None:
        if self._before is not None:
            growth = self.depth / self._before - 1
            if goodput < self._base * (1 + _WORTH * growth):
                self.depth = self._before
                self._slow_start = False
                self._before, self._wait = None, _WINDOWS_BETWEEN_TRIES
                return
        self._base = goodput
        self._before = None
        self._wait = max(self._wait - 1, 0)
        if self._wait == 0 and self.depth < MOST_DEPTH:
            step = self.depth if self._slow_start else max(self.depth // 8, 1)
            self._before = self.depth
            self.depth = min(self.depth + step, MOST_DEPTH)

    def _begin_window(self, now: float | None) -> None:
        self._window_began = now
        self._bytes = 0
        self._arrivals = 0
