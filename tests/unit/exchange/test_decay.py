from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode.node.exchange.decay import DecayedMean, RateMeter, SampleWindow

values = st.floats(0.0, 1e6)
steps = st.lists(st.tuples(st.floats(0.0, 1000.0), values), min_size=1, max_size=30)


@given(steps)
def test_a_decayed_mean_is_the_weighted_mean_by_definition(samples):
    mean, now, history = DecayedMean(60.0), 0.0, []
    for wait, value in samples:
        now += wait
        mean.add(value, 1.0, now)
        history.append((now, value))
    weights = [0.5 ** ((now - at) / 60.0) for at, _ in history]
    expected = sum(w * v for w, (_, v) in zip(weights, history, strict=True)) / sum(weights)
    assert mean.mean() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_old_samples_give_way_to_new_ones():
    mean = DecayedMean(60.0)
    for _ in range(100):
        mean.add(1.0, 1.0, 0.0)
    mean.add(9.0, 1.0, 600.0)
    assert mean.mean() == pytest.approx(9.0, abs=1.0)


def test_a_mean_does_not_change_by_waiting():
    mean = DecayedMean(60.0)
    assert mean.mean() is None
    mean.add(4.0, 2.0, 0.0)
    assert mean.mean() == 2.0
    mean.add(0.0, 0.0, 1e9)
    assert mean.mean() is None or math.isfinite(mean.mean() or 0.0)


@given(st.lists(values, min_size=1, max_size=100), st.floats(0.01, 1.0))
def test_a_quantile_is_the_smallest_sample_not_exceeded_by_that_share(samples, share):
    window = SampleWindow(32)
    window.extend(samples)
    last = samples[-32:]
    quantile = window.quantile(share)
    assert quantile in last
    assert sum(s <= quantile for s in last) >= share * len(last) - 1e-9
    smaller = [s for s in last if s < quantile]
    assert len(smaller) < share * len(last) + 1e-9


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_overlapping_transfers_count_their_time_once():
    clock = _Clock()
    meter = RateMeter(1e9, clock)
    meter.began()
    clock.now = 5.0
    meter.began()
    clock.now = 10.0
    meter.ended(1000)
    meter.ended(1000)
    assert meter.rate() == pytest.approx(200.0)


def test_idle_time_does_not_count():
    clock = _Clock()
    meter = RateMeter(1e9, clock)
    for start in (0.0, 1000.0):
        clock.now = start
        meter.began()
        clock.now = start + 5.0
        meter.ended(500)
    assert meter.rate() == pytest.approx(100.0)


def test_time_in_which_nothing_came_counts():
    clock = _Clock()
    meter = RateMeter(1e9, clock)
    meter.began()
    clock.now = 10.0
    meter.ended(0)
    assert meter.rate() == 0.0
    meter.began()
    clock.now = 20.0
    meter.ended(1000)
    assert meter.rate() == pytest.approx(50.0)


def test_a_transfer_that_took_no_time_gives_a_finite_rate():
    meter = RateMeter(60.0, _Clock())
    meter.began()
    meter.ended(10**6)
    assert meter.rate() == pytest.approx(1e11)
    meter.began()
    meter.ended(0)
    assert math.isfinite(meter.rate() or 0.0)
