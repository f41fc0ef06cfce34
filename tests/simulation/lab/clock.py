"""Runs a simulation: trio's virtual clock, and a schedule that follows from the seed."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from meshnode.node.transport.sim import deterministic_schedule
from trio.testing import MockClock

EPOCH = 1_800_000_000.0

_T = TypeVar("_T")


def wall_clock() -> float:
    """Unix time that follows the virtual clock."""
    return EPOCH + trio.current_time()


def run_simulation(seed: int, main: Callable[[], Awaitable[_T]]) -> _T:
    """Run `main` on the virtual clock; the same seed gives the same run.

    The same down to the last message only when `PYTHONHASHSEED` is set as well, as `make sim` does:
    the order of sets depends on it.
    """
    clock = MockClock(autojump_threshold=0)
    # The clock's own answer adds the real time that passed times a rate of zero: a tenth of the
    # time of a whole run.
    vars(clock)["current_time"] = lambda: vars(clock)["_virtual_base"]
    thresholds = gc.get_threshold()
    # Millions of objects live as long as the mesh; looking at them again and again finds nothing.
    gc.collect()
    gc.set_threshold(100_000, 20, 100)
    try:
        with deterministic_schedule(seed):
            return trio.run(main, clock=clock)
    finally:
        gc.set_threshold(*thresholds)
