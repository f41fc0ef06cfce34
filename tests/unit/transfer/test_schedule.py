from __future__ import annotations

import random

from meshnode.node.transfer.schedule import BACKOFF_CAP_SECONDS, backoff_seconds


def test_backoff_grows_from_a_tenth_of_a_second_to_its_cap_with_full_jitter() -> None:
    rng = random.Random(1)
    for attempt in range(12):
        ceiling = min(BACKOFF_CAP_SECONDS, 0.1 * 2**attempt)
        waits = [backoff_seconds(attempt, rng) for _ in range(300)]
        assert all(0 <= wait <= ceiling for wait in waits)
        assert min(waits) < 0.1 * ceiling
        assert max(waits) > 0.9 * ceiling
    assert backoff_seconds(10_000, rng) <= BACKOFF_CAP_SECONDS
