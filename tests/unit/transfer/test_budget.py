from __future__ import annotations

import pytest
import trio
from meshnode.node.transfer.budget import ByteBudget
from trio.testing import MockClock, wait_all_tasks_blocked


async def test_no_more_than_the_total_is_held_and_waiters_are_served_in_order() -> None:
    budget, order = ByteBudget(100), []

    async def hold(name: str, nbytes: int) -> None:
        await budget.acquire(nbytes)
        order.append(name)

    async with trio.open_nursery() as nursery:
        await budget.acquire(90)
        for name, nbytes in [("large", 98), ("small", 5)]:
            nursery.start_soon(hold, name, nbytes)
            await wait_all_tasks_blocked()
        assert order == []  # the small one would fit, and does not overtake
        budget.release(90)
        await wait_all_tasks_blocked()
        assert order == ["large"]
        budget.release(98)
    assert order == ["large", "small"]
    assert budget.held == 5


async def test_what_exceeds_the_whole_budget_goes_alone() -> None:
    budget = ByteBudget(10)
    await budget.acquire(25)
    assert budget.held == 25
    with trio.move_on_after(0):
        await budget.acquire(1)
        pytest.fail("granted beside an oversized one")
    budget.release(25)
    await budget.acquire(1)
    assert budget.held == 1


async def test_cancelled_waiters_hold_nothing_and_let_others_through(
    autojump_clock: MockClock,
) -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)

    async def impatient() -> None:
        with trio.move_on_after(1):
            await budget.acquire(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
        await wait_all_tasks_blocked()
        nursery.start_soon(budget.acquire, 3)
        await trio.sleep(2)
        budget.release(10)
    assert budget.held == 3
