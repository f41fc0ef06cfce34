from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from meshnode.node.exchange.lanes import Lane
from meshnode.node.exchange.limits import Budget, TokenBucket
from meshnode.node.exchange.settings import ServerLimits
from trio.testing import wait_all_tasks_blocked


def test_a_burst_goes_through_and_then_the_rate_holds():
    bucket = TokenBucket(rate=10.0, burst=5.0, now=0.0)
    assert [bucket.take(1.0, 0.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(1.0, 0.0) == pytest.approx(0.1)
    assert bucket.take(1.0, 1.0) == 0.0


def test_an_overdraft_has_to_be_waited_off():
    bucket = TokenBucket(rate=10.0, burst=5.0, now=0.0)
    for _ in range(10):
        bucket.take(1.0, 0.0)
    assert bucket.overdrawn(0.0) == 0.0
    bucket.take(1.0, 0.0)
    assert bucket.overdrawn(0.0) == pytest.approx(0.1)
    assert bucket.overdrawn(0.2) == 0.0


def test_a_cost_above_the_burst_is_granted_from_a_full_bucket():
    bucket = TokenBucket(rate=10.0, burst=5.0, now=0.0)
    assert bucket.take(8.0, 0.0) == 0.0
    assert bucket.take(8.0, 0.0) > 0.0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.1, 5)), max_size=60))
def test_never_more_is_granted_than_burst_and_rate_allow(requests):
    bucket, now, granted = TokenBucket(rate=10.0, burst=5.0, now=0.0), 0.0, 0.0
    for wait, cost in requests:
        now += wait
        if bucket.take(cost, now) == 0.0:
            granted += cost
    assert granted <= 5.0 + 10.0 * now + 1e-6


async def test_bytes_are_granted_in_order_and_never_more_than_there_are():
    budget = Budget(100)
    granted: list[int] = []

    async def use(size: int) -> None:
        await budget.take(size)
        granted.append(size)

    await budget.take(90)
    async with trio.open_nursery() as nursery:
        for size in (60, 10, 30):  # 10 would fit at once, but does not overtake
            nursery.start_soon(use, size)
            await wait_all_tasks_blocked()
        assert not budget.try_take(1)
        budget.give_back(30)
        await wait_all_tasks_blocked()
        assert granted == []
        budget.give_back(20)
        await wait_all_tasks_blocked()
        assert granted == [60]
        budget.give_back(40)
    assert sorted(granted) == [10, 30, 60]
    assert budget.taken == 100


async def test_a_cancelled_wait_lets_those_behind_it_through():
    budget = Budget(100)
    await budget.take(90)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def wait_for_much() -> None:
            with scope:
                await budget.take(50)

        nursery.start_soon(wait_for_much)
        await wait_all_tasks_blocked()
        nursery.start_soon(budget.take, 10)
        await wait_all_tasks_blocked()
        assert budget.taken == 90
        scope.cancel()
    assert budget.taken == 100


async def test_a_grant_that_meets_a_cancellation_is_given_back():
    budget = Budget(100)
    await budget.take(100)
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            await budget.take(50)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        scope.cancel()
        budget.give_back(100)
    assert budget.taken == (0 if scope.cancelled_caught else 50)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_chunk_bytes": 0},
        {"memory_per_peer": 1},
        {"memory_bytes": 1024 * 1024},
        {"requests_per_peer": 0},
    ],
)
def test_limits_that_could_never_serve_a_chunk_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        ServerLimits(**wrong)


@pytest.mark.parametrize(
    ("total", "asked", "share"),
    [(256, 0, 64), (64, 0, 16), (64, 64, 16), (64, 8, 8), (16, 0, 8), (8, 8, 8)],
)
def test_one_peer_gets_at_most_a_quarter_of_the_memory_but_room_for_a_chunk(total, asked, share):
    mib = 1024 * 1024
    limits = ServerLimits(memory_bytes=total * mib, memory_per_peer=asked * mib)
    assert limits.memory_per_peer == share * mib


async def test_lower_lanes_leave_room_and_come_after_interactive_ones_but_do_come():
    budget = Budget(100, low=40)
    low, first = Lane.BACKGROUND, Lane.INTERACTIVE
    assert budget.try_take(40, low)
    assert not budget.try_take(1, low)
    assert budget.try_take(60, first)
    order: list[Lane] = []

    async def use(lane: Lane) -> None:
        await budget.take(20, lane)
        order.append(lane)
        await trio.lowlevel.checkpoint()
        budget.give_back(20, lane)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, low)
        await wait_all_tasks_blocked()
        for _ in range(40):
            nursery.start_soon(use, first)
        await wait_all_tasks_blocked()
        budget.give_back(40, low)
    assert 1 <= order.index(low) < 20
    budget.give_back(60, first)
    assert budget.taken == 0
