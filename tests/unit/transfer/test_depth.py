"""The adaptive depth against links with a bandwidth and a round trip, on paper."""

from __future__ import annotations

import heapq
import random

from meshnode.node.transfer.depth import FIRST_DEPTH, LEAST_DEPTH, MOST_DEPTH, AdaptiveDepth

CHUNK = 1 << 20


def _run(
    depth: AdaptiveDepth, chunks: int, *, round_trip: float, rate: float, spread: float = 0.0
) -> list[int]:
    """Fetch over one link; the depth after each arrival."""
    rng = random.Random(4)
    under_way: list[tuple[float, int]] = []
    now, line_free, depths = 0.0, 0.0, []
    while len(depths) < chunks:
        while len(under_way) < depth.depth:
            size = int(CHUNK * rng.uniform(1 - spread, 1 + spread))
            line_free = max(now + round_trip, line_free) + size / rate
            heapq.heappush(under_way, (line_free, size))
        now, size = heapq.heappop(under_way)
        depth.arrived(size, now)
        depths.append(depth.depth)
    return depths


def test_a_long_link_with_room_is_filled_to_the_most_allowed() -> None:
    depths = _run(AdaptiveDepth(0.0), 1500, round_trip=0.5, rate=1e9)
    assert depths[0] == FIRST_DEPTH
    assert max(depths) == MOST_DEPTH


def test_a_short_link_that_is_full_already_gets_no_more() -> None:
    depths = _run(AdaptiveDepth(0.0), 1500, round_trip=0.0005, rate=50e6)
    # It tries now and then, and takes it back.
    assert sum(depths) / len(depths) < FIRST_DEPTH + 1
    assert sorted(depths)[len(depths) // 2] == FIRST_DEPTH


def test_chunks_of_different_sizes_do_not_keep_a_long_link_from_being_filled() -> None:
    depths = _run(AdaptiveDepth(0.0), 3000, round_trip=0.5, rate=1e9, spread=0.6)
    assert sum(depths[-300:]) / 300 > 1.5 * FIRST_DEPTH


def test_timeouts_halve_once_for_all_that_were_under_way_and_never_below_the_least() -> None:
    depth = AdaptiveDepth(0.0)
    _run(depth, 1500, round_trip=0.5, rate=1e9)
    high = depth.depth
    for _ in range(10):
        depth.timed_out(asked_at=990.0, now=1000.0)
    assert depth.depth == high // 2
    for later in range(10):
        depth.timed_out(asked_at=2000.0 + later, now=2000.5 + later)
    assert depth.depth == LEAST_DEPTH
