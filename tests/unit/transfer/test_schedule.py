from __future__ import annotations

import random

from meshnode.dht.peer_id import PeerId
from meshnode.node.transfer.schedule import BACKOFF_CAP_SECONDS, Schedule, backoff_seconds

PEERS = [PeerId.from_ed25519(bytes([n]) * 32) for n in range(1, 4)]
RATES = {PEERS[0]: 1e6, PEERS[1]: 10e6, PEERS[2]: 1e6}


def _expected(peer: PeerId, size: int, queued: int) -> float:
    return (size + queued) / RATES[peer]


def _schedule(*, prefer_fast: bool) -> Schedule:
    return Schedule(prefer_fast=prefer_fast, expected_seconds=_expected, rng=random.Random(3))


def test_the_fastest_holder_is_asked_first() -> None:
    assert _schedule(prefer_fast=True).choose(PEERS, 1000) == PEERS[1]


def test_a_fast_holder_with_a_long_queue_gives_way_to_a_slower_idle_one() -> None:
    schedule = _schedule(prefer_fast=True)
    schedule.begin(PEERS[1], 50_000)
    assert schedule.choose(PEERS, 1000) in (PEERS[0], PEERS[2])
    schedule.end(PEERS[1], 50_000)
    assert schedule.choose(PEERS, 1000) == PEERS[1]


def test_without_preference_holders_take_turns() -> None:
    schedule = _schedule(prefer_fast=False)
    asked = []
    for _ in range(9):
        peer = schedule.choose(PEERS, 1000)
        assert peer is not None
        schedule.begin(peer, 1000)
        schedule.end(peer, 1000)
        asked.append(peer)
    assert asked == PEERS * 3


def test_a_slow_holder_is_still_tried_now_and_then() -> None:
    schedule = _schedule(prefer_fast=True)
    asked = []
    for _ in range(1000):
        peer = schedule.choose(PEERS, 1000)
        assert peer is not None
        schedule.begin(peer, 1000)
        schedule.end(peer, 1000)
        asked.append(peer)
    share = 1 - asked.count(PEERS[1]) / len(asked)
    assert 0.005 < share < 0.06


def test_excluded_holders_are_not_chosen() -> None:
    schedule = _schedule(prefer_fast=True)
    assert schedule.choose(PEERS, 1, {PEERS[1]}) in (PEERS[0], PEERS[2])
    assert schedule.choose(PEERS, 1, set(PEERS)) is None
    assert schedule.choose([], 1) is None


def test_backoff_grows_from_a_tenth_of_a_second_to_its_cap_with_full_jitter() -> None:
    rng = random.Random(1)
    for attempt in range(12):
        ceiling = min(BACKOFF_CAP_SECONDS, 0.1 * 2**attempt)
        waits = [backoff_seconds(attempt, rng) for _ in range(300)]
        assert all(0 <= wait <= ceiling for wait in waits)
        assert min(waits) < 0.1 * ceiling
        assert max(waits) > 0.9 * ceiling
    assert backoff_seconds(10_000, rng) <= BACKOFF_CAP_SECONDS
