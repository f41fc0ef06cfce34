"""How many keys one peer may announce or ask about, per second: a token bucket per peer.

Streams and frames are bounded, yet a peer that keeps sixteen streams full of batches makes this
node write and search millions of keys a minute. The burst lets an honest peer with much to tell
tell it at once; what goes on beyond the rate is refused with the time to wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from .counters import Counters
from .peer_id import PeerId
from .settings import DhtSettings

_FORGET_ABOVE = 1024


@dataclass(slots=True)
class _Bucket:
    keys: float
    at: float


class KeyBudget:
    """`rate` keys per second and peer, up to `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[PeerId, _Bucket] = {}

    def take(self, peer: PeerId, keys: int, now: float) -> float:
        """Charge `peer` for `keys`; 0 when it may go on, else the seconds to wait, uncharged.

        More keys than a burst cost one whole burst: what a message may carry is never impossible.
        """
        bucket = self._buckets.get(peer)
        if bucket is None:
            if len(self._buckets) >= _FORGET_ABOVE:
                self._forget_rested(now)
            bucket = self._buckets[peer] = _Bucket(self._burst, now)
        bucket.keys = self._filled(bucket, now)
        bucket.at = now
        cost = min(keys, self._burst)
        if bucket.keys >= cost:
            bucket.keys -= cost
            return 0.0
        return (cost - bucket.keys) / self._rate

    def _filled(self, bucket: _Bucket, now: float) -> float:
        return min(self._burst, bucket.keys + (now - bucket.at) * self._rate)

    def _forget_rested(self, now: float) -> None:
        """A full bucket is as good as none."""
        self._buckets = {
            peer: bucket
            for peer, bucket in self._buckets.items()
            if self._filled(bucket, now) < self._burst
        }


class OverBudgetError(Exception):
    """A peer asks more than its share, where the protocol has no word to tell it."""


class Budgets:
    """What each peer may still write and ask, over all protocols."""

    def __init__(self, settings: DhtSettings, counters: Counters) -> None:
        self._counters = counters
        self._written = KeyBudget(settings.written_per_second, settings.written_burst)
        self._asked = KeyBudget(settings.asked_per_second, settings.asked_burst)

    def write(self, sender: PeerId, keys: int) -> float:
        """Charge `sender` for writing `keys`; 0, or the seconds until it may."""
        return self._charge(self._written, sender, keys)

    def ask(self, sender: PeerId, keys: int) -> float:
        """Charge `sender` for asking about `keys`; 0, or the seconds until it may."""
        return self._charge(self._asked, sender, keys)

    def _charge(self, budget: KeyBudget, sender: PeerId, keys: int) -> float:
        wait = budget.take(sender, keys, trio.current_time())
        if wait:
            self._counters.add("requests_over_budget")
        return wait
