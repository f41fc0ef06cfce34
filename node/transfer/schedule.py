"""Which holder to ask for a chunk: pure bookkeeping and decisions of one get.

With `prefer_fast` the holder that should be finished first is asked: what this get has already
queued on it counts, so that a fast peer fills up and slower ones take their share. A small share
of choices goes to the least used holder, or an idle peer's old bad measurement would stand for
ever. Without it, holders take turns.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from ...config import ChunkSettings
from ...dht.peer_id import PeerId

EXPLORATION_SHARE = 1 / 32
BACKOFF_BASE_SECONDS = 0.1
BACKOFF_CAP_SECONDS = 10.0

ExpectedSeconds = Callable[[PeerId, int, int], float]
"""(peer, size, queued) -> seconds until `size` bytes asked now would be here, by the peer's
measured latency and rate, when this get has `queued` bytes outstanding there already."""


class Schedule:
    """Who was asked for what, and who is next."""

    def __init__(
        self, *, prefer_fast: bool, expected_seconds: ExpectedSeconds, rng: random.Random
    ) -> None:
        self._prefer_fast = prefer_fast
        self._expected_seconds = expected_seconds
        self._rng = rng
        self._queued: Counter[PeerId] = Counter()
        self._asked: Counter[PeerId] = Counter()

    def choose(
        self, holders: Sequence[PeerId], size: int, exclude: Collection[PeerId] = ()
    ) -> PeerId | None:
        """The holder to ask for `size` bytes now; None when all are excluded."""
        candidates = [peer for peer in holders if peer not in exclude]
        if not candidates:
            return None
        if not self._prefer_fast:
            return min(candidates, key=lambda peer: self._asked[peer])
        if len(candidates) > 1 and self._rng.random() < EXPLORATION_SHARE:
            return min(candidates, key=lambda peer: (self._queued[peer], self._asked[peer]))
        return min(candidates, key=lambda peer: self._finish(peer, size))

    def _finish(self, peer: PeerId, size: int) -> tuple[float, int]:
        expected = self._expected_seconds(peer, size, self._queued[peer])
        return expected, self._asked[peer]

    def begin(self, peer: PeerId, size: int) -> None:
        """`size` bytes have been asked of `peer`."""
        self._queued[peer] += size
        self._asked[peer] += 1

    def end(self, peer: PeerId, size: int) -> None:
        """That request is over, whatever came of it."""
        self._queued[peer] -= size


def patience_seconds(settings: ChunkSettings) -> float:
    """How long peers that only say "busy" are waited for while nothing gets on with anybody.

    The time one chunk may take, after the longest rest that a peer is granted.
    """
    return settings.chunk_timeout_secs + BACKOFF_CAP_SECONDS


def backoff_seconds(attempt: int, rng: random.Random) -> float:
    """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015).

    Args:
        attempt: 0 for the first wait.
    """
    ceiling = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(attempt, 30))
    return rng.uniform(0.0, ceiling)
