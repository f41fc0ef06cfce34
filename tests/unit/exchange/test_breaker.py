from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode.node.exchange.breaker import Breaker, BreakerState


def _tripped(now: float = 0.0) -> Breaker:
    breaker = Breaker(threshold=3, base=1.0, cap=8.0)
    for _ in range(3):
        breaker.began(now)
        breaker.failed(now)
    return breaker


def test_it_opens_at_the_threshold_and_not_before():
    breaker = Breaker(threshold=3)
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED
    breaker.failed(0.0)
    assert breaker.state(0.0) is BreakerState.OPEN
    assert not breaker.allows(0.0)


def test_a_success_in_between_starts_the_count_again():
    breaker = Breaker(threshold=3)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_half_open_lets_one_probe_through():
    breaker = _tripped()
    assert breaker.state(0.99) is BreakerState.OPEN
    assert breaker.state(1.0) is BreakerState.HALF_OPEN
    assert breaker.allows(1.0)
    breaker.began(1.0)
    assert not breaker.allows(1.0)
    breaker.succeeded()
    assert breaker.allows(1.0)
    assert breaker.state(1.0) is BreakerState.CLOSED


def test_a_lost_probe_does_not_block_for_ever():
    breaker = _tripped()
    breaker.began(1.0)
    assert not breaker.allows(1.5)
    assert breaker.allows(2.0)


def test_failed_probes_double_the_open_time_up_to_the_cap():
    breaker, now, opened = _tripped(), 0.0, []
    for _ in range(6):
        until = breaker.retry_at()
        assert until is not None
        opened.append(until - now)
        now = until
        breaker.began(now)
        breaker.failed(now)
    assert opened == [1, 2, 4, 8, 8, 8]


def test_requests_that_were_under_way_when_it_opened_do_not_lengthen_it():
    breaker = _tripped()
    until = breaker.retry_at()
    for _ in range(20):
        breaker.failed(0.5)
    assert breaker.retry_at() == until


def test_after_a_restart_an_open_breaker_is_half_open():
    breaker = Breaker()
    breaker.restore(3, 1)
    assert breaker.state(0.0) is BreakerState.HALF_OPEN


@given(st.lists(st.tuples(st.sampled_from(["began", "ok", "bad"]), st.floats(0, 100))))
def test_it_always_lets_something_through_again(events):
    breaker, now = Breaker(cap=60.0), 0.0
    for what, wait in events:
        now += wait
        if what == "began":
            breaker.began(now)
        elif what == "ok":
            breaker.succeeded()
            assert breaker.allows(now)
        else:
            breaker.failed(now)
    assert breaker.allows(now + 60.0)
