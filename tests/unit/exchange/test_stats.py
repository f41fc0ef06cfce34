"""What is remembered about peers, and what schedulers make of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError
from meshnode.node.exchange import BreakerState, PeerStats, PeerStatsTable
from meshnode.node.exchange.stats import (
    LATENCY_SAMPLES,
    MAX_PEERS,
    PRESUMED_LATENCY,
    PRESUMED_RATE,
)

GOLDEN = Path(__file__).with_name("golden") / "peer-stats-v1.hex"


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Table:
    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.failing = False

    async def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        if self.failing:
            raise OSError("no")
        self.rows.update(items)


def _peer(number: int) -> PeerId:
    return PeerId.from_ed25519(number.to_bytes(32, "big"))


def _new(clock: Clock | None = None) -> PeerStats:
    return PeerStats(clock or Clock(), lambda: 1_700_000_000.0)


def _download(stats: PeerStats, clock: Clock, size: int, seconds: float) -> None:
    stats.download.began()
    clock.now += seconds
    stats.download.ended(size)


def test_a_stranger_is_presumed_ordinary():
    stats = _new()
    assert stats.success_rate == 1.0
    assert stats.breaker is BreakerState.CLOSED
    assert stats.latency is stats.latency_p95 is stats.throughput is None
    assert stats.expected_seconds(10**7) == pytest.approx(10**7 / PRESUMED_RATE + PRESUMED_LATENCY)


def test_expectation_is_queue_and_size_over_throughput_plus_latency():
    clock = Clock()
    stats = _new(clock)
    stats.first_byte(0.2)
    _download(stats, clock, 5_000_000, 5.0)
    stats.began(3_000_000)
    assert stats.expected_seconds(1_000_000) == pytest.approx(4.2)
    stats.ended(3_000_000)
    assert stats.expected_seconds(1_000_000) == pytest.approx(1.2)


def test_up_and_down_are_told_apart():
    clock = Clock()
    stats = _new(clock)
    _download(stats, clock, 1_000_000, 1.0)
    stats.upload.began()
    clock.now += 10.0
    stats.upload.ended(1_000_000)
    assert stats.expected_seconds(10**6) < stats.expected_seconds(10**6, upload=True)


def test_a_peer_that_delivers_nothing_is_expected_to_take_very_long_but_not_for_ever():
    clock = Clock()
    stats = _new(clock)
    _download(stats, clock, 0, 60.0)
    assert 10**5 < stats.expected_seconds(10**6) < float("inf")


def test_the_percentile_is_of_the_recent_samples():
    stats = _new()
    for sample in range(LATENCY_SAMPLES):
        stats.first_byte(100.0 + sample)
    for sample in range(LATENCY_SAMPLES):
        stats.first_byte(float(sample))
    assert stats.latency_p95 == 60.0  # 61 of 64 samples are not above it


def test_success_rate_forgets_what_is_beyond_its_window():
    stats = _new()
    for _ in range(100):
        stats.failed("no")
    for _ in range(48):
        stats.succeeded()
    assert stats.success_rate == 0.75


def test_a_given_up_request_counts_as_latency_only_if_it_waited_long():
    stats = _new()
    stats.gave_up(9.0)
    assert stats.latency is None
    stats.first_byte(1.0)
    stats.gave_up(0.1)
    assert stats.latency == 1.0
    stats.gave_up(9.0)
    assert stats.latency == pytest.approx(5.0)


def test_a_refusal_is_no_failure():
    stats = _new()
    stats.failed("a")
    stats.failed("b")
    stats.refused()
    stats.failed("c")
    assert stats.breaker is BreakerState.CLOSED
    assert (stats.refusals, stats.failures, stats.last_error) == (1, 3, "c")
    assert stats.last_error_at == 1_700_000_000.0


def test_corruption_opens_the_breaker_at_once_and_for_a_time():
    clock = Clock()
    stats = _new(clock)
    stats.succeeded()
    stats.corrupted("false bytes")
    assert stats.breaker is BreakerState.OPEN
    assert not stats.allows()
    clock.now += stats.retry_in
    assert stats.breaker is BreakerState.HALF_OPEN
    assert stats.allows()


def _exercised() -> PeerStats:
    clock = Clock()
    stats = _new(clock)
    for wait in (0.25, 0.5):
        stats.began(100)
        stats.first_byte(wait)
        _download(stats, clock, 1_000_000, 2.0)
        stats.ended(100)
        stats.succeeded()
    stats.bytes_received, stats.bytes_sent, stats.duplicates = 2_000_100, 300, 1
    stats.refused()
    for _ in range(3):
        stats.failed("silent")
    return stats


def test_what_was_learned_survives_a_restart_on_another_clock():
    before = _exercised()
    clock = Clock(5.0)
    after = PeerStats.from_bytes(before.to_bytes(), clock, lambda: 0.0)
    assert after.latency == before.latency
    assert after.latency_p95 == before.latency_p95
    assert after.throughput == before.throughput == pytest.approx(500_000)
    assert after.success_rate == before.success_rate == 0.4
    assert after.last_error == "silent"
    assert after.last_error_at == 1_700_000_000.0
    assert after.bytes_received == 2_000_100
    assert before.breaker is BreakerState.OPEN
    assert after.breaker is BreakerState.HALF_OPEN
    assert after.to_bytes() == before.to_bytes()
    after.first_byte(0.5)  # and it goes on from there
    assert after.latency == pytest.approx((before.latency or 0) * 2 / 3 + 0.5 / 3, rel=0.1)


def test_what_version_1_stored_is_still_understood_and_stored_the_same():
    golden = bytes.fromhex(GOLDEN.read_text())
    stats, same = PeerStats.from_bytes(golden, Clock(), lambda: 0.0), _exercised()
    assert stats.to_bytes() == golden
    assert stats.latency == pytest.approx(same.latency)
    assert stats.throughput == pytest.approx(same.throughput)
    assert stats.latency_p95 == same.latency_p95
    assert (stats.requests, stats.failures, stats.refusals) == (2, 3, 1)
    assert (stats.duplicates, stats.bytes_received, stats.bytes_sent) == (1, 2_000_100, 300)
    assert (stats.success_rate, stats.last_error) == (0.4, "silent")


@given(st.binary(max_size=300) | st.just(_exercised().to_bytes()), st.integers(0), st.binary())
@settings(deadline=None, max_examples=200)
def test_a_damaged_record_is_a_format_error(data, at, patch):
    at %= len(data) + 1
    try:
        stats = PeerStats.from_bytes(data[:at] + patch + data[at:], Clock(), lambda: 0.0)
    except FormatError:
        return
    PeerStats.from_bytes(stats.to_bytes(), Clock(), lambda: 0.0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("first_byte"), st.floats(0, 60)),
            st.tuples(st.just("gave_up"), st.floats(0, 60)),
            st.tuples(st.just("download"), st.floats(0, 60)),
            st.tuples(st.just("succeeded"), st.just(0.0)),
            st.tuples(st.just("failed"), st.just(0.0)),
            st.tuples(st.just("refused"), st.just(0.0)),
            st.tuples(st.just("wait"), st.floats(0, 1e5)),
        ),
        max_size=40,
    )
)
@settings(deadline=None)
def test_whatever_happens_the_figures_stay_figures(events):
    clock = Clock()
    stats = _new(clock)
    for what, value in events:
        if what == "download":
            _download(stats, clock, int(value * 1000), value)
        elif what == "wait":
            clock.now += value
        elif what == "failed":
            stats.failed("x")
        elif what in ("first_byte", "gave_up"):
            getattr(stats, what)(value)
        else:
            getattr(stats, what)()
    assert 0.0 <= stats.success_rate <= 1.0
    assert 0.0 <= stats.expected_seconds(10**6) < float("inf")
    again = PeerStats.from_bytes(stats.to_bytes(), clock, lambda: 0.0)
    assert again.expected_seconds(10**6) == pytest.approx(stats.expected_seconds(10**6))


def test_reading_about_a_stranger_keeps_nothing():
    table = PeerStatsTable()
    assert table[_peer(1)].requests == 0
    assert len(table) == 0
    table.of(_peer(1)).succeeded()
    assert list(table) == [_peer(1)]


def test_the_table_is_bounded_and_keeps_what_is_in_use():
    table = PeerStatsTable()
    busy = table.of(_peer(0))
    busy.began(1)
    for number in range(1, MAX_PEERS + 100):
        table.of(_peer(number))
    assert len(table) == MAX_PEERS
    assert table[_peer(0)] is busy
    assert _peer(1) not in list(table)
    assert _peer(MAX_PEERS + 99) in list(table)


async def test_what_changed_is_saved_and_loaded_again():
    disk, table = Table(), PeerStatsTable()
    table.of(_peer(1)).first_byte(0.5)
    table.of(_peer(2)).failed("no")
    await table.save(disk)
    assert set(disk.rows) == {bytes(_peer(1)), bytes(_peer(2))}
    disk.rows.clear()
    await table.save(disk)
    assert not disk.rows  # nothing changed
    table.of(_peer(2)).succeeded()
    await table.save(disk)
    assert set(disk.rows) == {bytes(_peer(2))}

    again = PeerStatsTable()
    again.of(_peer(3)).first_byte(0.1)
    disk.rows[bytes(_peer(4))] = b"nonsense"
    disk.rows[bytes(_peer(3))] = disk.rows[bytes(_peer(2))]
    await again.load(disk, map(_peer, range(6)))
    assert set(again) == {_peer(2), _peer(3)}
    assert again[_peer(2)].last_error == "no"
    assert again[_peer(3)].latency == 0.1  # what this process learned itself stays


async def test_a_failed_save_is_made_up_for_by_the_next():
    disk, table = Table(), PeerStatsTable()
    table.of(_peer(1)).first_byte(0.5)
    disk.failing = True
    with pytest.raises(OSError, match="no"):
        await table.save(disk)
    disk.failing = False
    await table.save(disk)
    assert set(disk.rows) == {bytes(_peer(1))}
