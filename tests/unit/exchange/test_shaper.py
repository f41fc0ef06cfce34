"""Who may move how many bytes when: limits, lanes and fairness, on paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.node.exchange.byte_rates import ByteBucket, FlowMeter
from meshnode.node.exchange.lanes import LANES, Lane
from meshnode.node.exchange.shaper import LINGER_SECS, Shaper, Ticket

SLICE = 128 * 1024
KIB = 1024


def _serve(shaper: Shaper, until: float, wishes: dict[tuple[bytes, Lane], int]) -> dict:
    """What each (peer, lane) was granted up to `until`, each always wanting `wishes` more."""
    granted = dict.fromkeys(wishes, 0)
    tickets = {}

    def wish(who: tuple[bytes, Lane]) -> None:
        tickets[who] = Ticket(who[0], who[1], wishes[who])
        shaper.add(tickets[who])

    for who in wishes:
        shaper.began(who[1])
        wish(who)
    now = 0.0
    while now < until:
        again = shaper.grant(now)
        for who, ticket in list(tickets.items()):
            if ticket.granted is not None:
                granted[who] += ticket.granted
                shaper.meter.add(ticket.granted, now)
                wish(who)
                again = now
        now = max(again, now) if again < math.inf else until
    return granted


def test_without_limits_nobody_waits_and_nothing_is_counted():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.began(Lane.INTERACTIVE)
    assert shaper.take_now(Lane.INTERACTIVE, 10 * SLICE, 0.0) == SLICE
    assert shaper.take_now(Lane.INTERACTIVE, 100, 0.0) == 100


@pytest.mark.parametrize("rate", [64 * KIB, 1_000_000, 50_000_000])
def test_a_limit_is_kept_exactly_and_in_small_slices(rate):
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(rate, 0, 0.0)
    granted = _serve(shaper, 10.0, {(b"a", Lane.INTERACTIVE): 10**6})
    assert 0.98 * 10 * rate < sum(granted.values()) < 10 * rate + 0.2 * rate + 2 * 16 * KIB


def test_slices_are_a_tenth_of_a_second_of_the_limit_but_no_crumbs():
    for rate, most in ((64 * KIB, 16 * KIB), (500_000, 50_000), (50_000_000, SLICE)):
        shaper = Shaper(0.0, slice_bytes=SLICE)
        shaper.set_limits(rate, 0, 0.0)
        shaper.add(ticket := Ticket(b"a", Lane.INTERACTIVE, 10**6))
        shaper.grant(0.0)
        assert ticket.granted == most


def test_peers_share_a_limit_evenly_and_each_keeps_its_own():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(1_000_000, 0, 0.0)
    wishes = {(peer, Lane.INTERACTIVE): 10**6 for peer in (b"a", b"b", b"c", b"d")}
    granted = _serve(shaper, 20.0, wishes)
    assert max(granted.values()) < 1.1 * min(granted.values())

    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(0, 250_000, 0.0)
    granted = _serve(shaper, 20.0, wishes)
    assert all(0.95 * 5e6 < size < 1.05 * 5e6 for size in granted.values())


def test_lower_lanes_get_a_sixteenth_each_and_do_not_starve():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(10_000_000, 0, 0.0)
    granted = _serve(shaper, 20.0, {(b"a", lane): 10**6 for lane in LANES})
    total = sum(granted.values())
    assert granted[b"a", Lane.INTERACTIVE] > 0.85 * total
    for lane in (Lane.REPAIR, Lane.BACKGROUND):
        assert 0.04 * total < granted[b"a", lane] < 0.08 * total


def test_many_peers_of_a_lower_lane_get_no_more_than_one():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(10_000_000, 0, 0.0)
    wishes = {(bytes([peer]), Lane.BACKGROUND): 10**6 for peer in range(20)}
    granted = _serve(shaper, 20.0, {(b"person", Lane.INTERACTIVE): 10**6, **wishes})
    assert granted[b"person", Lane.INTERACTIVE] > 0.9 * sum(granted.values())
    assert min(granted.values()) > 0


def test_a_lower_lane_yields_on_an_unlimited_line_by_what_the_line_is_known_to_bear():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    for tick in range(1000):  # 16 MB/s for ten seconds
        shaper.meter.add(160_000, tick / 100)
    shaper.began(Lane.INTERACTIVE)
    assert shaper.take_now(Lane.BACKGROUND, SLICE, 10.0) == 0
    assert shaper.share(Lane.BACKGROUND, 10.0) == pytest.approx(1e6, rel=0.1)
    shaper.ended(Lane.INTERACTIVE, 10.0)
    assert shaper.take_now(Lane.BACKGROUND, SLICE, 10.0 + LINGER_SECS / 2) == 0
    assert shaper.take_now(Lane.BACKGROUND, SLICE, 10.0 + LINGER_SECS) == SLICE


def test_after_a_long_rest_a_lower_lane_still_gets_its_least():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.meter.add(10_000_000, 0.0)
    shaper.began(Lane.INTERACTIVE)
    shaper.add(first := Ticket(b"a", Lane.BACKGROUND, 10**6))
    shaper.grant(86_400.0)
    shaper.add(second := Ticket(b"a", Lane.BACKGROUND, 10**6))
    again = shaper.grant(86_400.0)
    assert first.granted
    assert second.granted is None
    assert again < 86_402.0


def test_in_a_pipe_with_a_cap_one_always_may_and_more_only_below_it():
    shaper = Shaper(0.0, whole=True, cap=lambda lane, now: 100.0, slice_bytes=SLICE)
    tickets = [Ticket(b"a", Lane.BACKGROUND, size) for size in (500, 40, 40, 40)]
    for ticket in tickets:
        shaper.add(ticket)
    shaper.grant(0.0)
    assert [t.granted for t in tickets] == [500, None, None, None]
    shaper.landed(Lane.BACKGROUND, 500)
    shaper.grant(0.0)
    assert [t.granted for t in tickets] == [500, 40, 40, None]


def test_an_unused_share_of_a_limit_is_given_to_the_lower_lane():
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(1_000_000, 0, 0.0)
    granted = _serve(shaper, 10.0, {(b"a", Lane.BACKGROUND): 10**6})
    assert sum(granted.values()) > 0.98 * 10e6


@given(
    st.lists(
        st.tuples(st.sampled_from(LANES), st.integers(0, 4), st.integers(1, 10**6)), max_size=40
    ),
    st.sampled_from([0, 64 * KIB, 10**6]),
    st.sampled_from([0, 128 * KIB]),
)
@settings(deadline=None, max_examples=60)
def test_whatever_waits_is_granted_in_the_end(wishes, total, per_peer):
    shaper = Shaper(0.0, slice_bytes=SLICE)
    shaper.set_limits(total, per_peer, 0.0)
    tickets = []
    for lane, peer, size in wishes:
        shaper.began(lane)
        tickets.append(Ticket(bytes([peer]), lane, size))
        shaper.add(tickets[-1])
    now, granted, rounds = 0.0, 0, 0
    while shaper.waiting:
        again = shaper.grant(now)
        assert again > now or not shaper.waiting
        assert again < math.inf or not shaper.waiting
        now, rounds = min(again, now + 1e6), rounds + 1
        assert rounds < 1000
    for ticket in tickets:
        assert ticket.granted is not None
        assert 0 < ticket.granted <= min(ticket.size, SLICE)
        granted += ticket.granted
    if total and tickets:
        assert granted <= total * now + max(total * 0.1, 16 * KIB) + SLICE


def test_a_bucket_pays_off_a_large_grant_before_the_next():
    bucket = ByteBucket(1000.0, 0.0)
    bucket.take(50_000, 0.0)
    at = bucket.ready_at(0.0)
    assert at == pytest.approx((50_000 - 16 * KIB) / 1000, abs=0.01)
    bucket.take(-50_000, 1.0)
    assert bucket.ready_at(1.0) == 1.0


def test_a_meter_tells_what_flows_now_and_the_most_that_did():
    meter = FlowMeter(0.0)
    for tick in range(200):
        meter.add(10_000, tick / 10)
    assert meter.rate(20.0) == pytest.approx(100_000, rel=0.1)
    assert meter.rate(40.0) < 100
    assert meter.best(40.0) > 50_000
    assert meter.total == 2_000_000
