"""What a bad network may cost a get: the real scheduler and driver over modelled links.

Virtual time, so these figures are the same on every machine. `make sim-transfer` prints them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.simulation.transfer.modelled import (
    CHUNK,
    Outcome,
    in_place,
    make_deterministic,
    make_peers,
    run_get,
)
from tests.simulation.transfer.scenarios import FAULTS, RATE, ideal_seconds, scenario

CHUNKS = 128


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)
    make_deterministic(seed=1)
    return tmp_path


async def _healthy(home: Path, count: int, rtt: float, **settings: object) -> Outcome:
    return await scenario(count, "none", rtt, CHUNKS, home, **settings)


@pytest.mark.parametrize(("peers", "rate"), [(1, 125e6), (4, 20e6)])
async def test_eight_at_once_are_six_times_as_fast_as_one_over_a_long_line(
    home, autojump_clock: MockClock, peers: int, rate: float
) -> None:
    def fresh() -> list:
        return make_peers(peers, rtt=0.05, rate=rate)

    eight = await run_get(fresh(), CHUNKS, home, max_concurrent_retrievals=8)
    one = await run_get(fresh(), CHUNKS, home, max_concurrent_retrievals=1)
    assert one.most_in_flight == 1
    assert one.seconds >= 6 * eight.seconds


@pytest.mark.parametrize("rtt", [0.001, 0.05, 0.2])
async def test_a_replica_that_is_ten_times_slower_costs_less_than_a_tenth(
    home, autojump_clock: MockClock, rtt: float
) -> None:
    without = await run_get(make_peers(3, rtt=rtt, rate=RATE), CHUNKS, home)
    slowed = await scenario(4, "one 10x slower", rtt, CHUNKS, home)
    assert slowed.seconds <= 1.1 * without.seconds


@pytest.mark.parametrize("rtt", [0.001, 0.05])
async def test_a_peer_that_freezes_in_a_chunk_costs_its_hedge_delay(
    home, autojump_clock: MockClock, rtt: float
) -> None:
    outcome = await scenario(4, "one stalls mid-chunk", rtt, CHUNKS, home)
    hedge_delay = max(0.1, 2 * rtt)
    ideal = ideal_seconds(4, "one stalls mid-chunk", rtt, CHUNKS)
    assert outcome.hedges > 0
    assert outcome.seconds <= ideal + hedge_delay
    assert outcome.duplicates <= 0.05


@pytest.mark.parametrize("fault", [fault.name for fault in FAULTS])
@pytest.mark.parametrize("peers", [4, 16])
async def test_whatever_happens_every_chunk_comes_once_and_little_comes_twice(
    home, autojump_clock: MockClock, fault: str, peers: int
) -> None:
    outcome = await scenario(peers, fault, 0.05, 2 * CHUNKS, home, max_concurrent_retrievals=8)
    assert outcome.used == 2 * CHUNKS
    assert outcome.duplicates <= 0.05
    assert outcome.most_in_flight <= 12  # eight, hedges, and those just being cancelled


@pytest.mark.parametrize("peers", [4, 16])
async def test_a_peer_that_sends_false_bytes_is_not_asked_again(
    home, autojump_clock: MockClock, peers: int
) -> None:
    outcome = await scenario(peers, "one corrupts", 0.05, CHUNKS, home)
    # What was asked of it before its first bytes came, and nothing after.
    assert outcome.asked[0] <= 4
    assert outcome.retries == 1


async def test_a_peer_that_leaves_costs_what_was_under_way_there(
    home, autojump_clock: MockClock
) -> None:
    outcome = await scenario(4, "all but one leave mid-way", 0.05, CHUNKS, home)
    ideal = ideal_seconds(4, "all but one leave mid-way", 0.05, CHUNKS)
    assert outcome.seconds <= 1.1 * ideal


async def test_failing_requests_cost_their_round_trips(home, autojump_clock: MockClock) -> None:
    well = await _healthy(home, 4, 0.05)
    failing = await scenario(4, "30 % of requests fail", 0.05, CHUNKS, home)
    assert failing.retries > CHUNKS // 4
    assert failing.seconds <= 2 * well.seconds


@pytest.mark.parametrize("rtt", [0.001, 0.2])
async def test_automatic_concurrency_fills_the_lines_there_are(
    home, autojump_clock: MockClock, rtt: float
) -> None:
    auto = await _healthy(home, 4, rtt, max_concurrent_retrievals="auto")
    ideal = ideal_seconds(4, "none", rtt, CHUNKS)
    # Finding out takes some round trips.
    assert auto.seconds <= 1.1 * ideal + 4 * rtt
    eight = await _healthy(home, 4, rtt, max_concurrent_retrievals=8)
    assert auto.seconds <= 1.05 * eight.seconds


async def test_the_first_chunk_comes_after_a_round_trip_and_its_bytes(
    home, autojump_clock: MockClock
) -> None:
    outcome = await _healthy(home, 4, 0.05)
    assert outcome.first_chunk <= 0.05 + CHUNK / RATE + 0.01


def test_the_same_seed_gives_the_same_run(home) -> None:
    def run() -> Outcome:
        make_deterministic(seed=5)
        return trio.run(
            lambda: scenario(4, "30 % of requests fail", 0.05, CHUNKS // 2, home, seed=3),
            clock=MockClock(autojump_threshold=0),
        )

    assert run() == run()
