"""Waiting before another try: how long, and for how long at all."""

from __future__ import annotations

import random

from ...config import ChunkSettings

EXPLORATION_SHARE = 1 / 32
"""Of choices that go to the least used peer: an old bad measurement must not stand for ever."""
BACKOFF_BASE_SECONDS = 0.1
BACKOFF_CAP_SECONDS = 10.0


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
