"""Tasks that wait for something to change."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Gate:
    """As `trio.lowlevel.ParkingLot`, for the few tasks and many wake-ups of a stream: all wake at
    once, in order, and looking whether anybody waits costs next to nothing."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[trio.lowlevel.Task] = []

    async def wait(self, given_up: Callable[[], object] | None = None) -> None:
        """Until the next `wake`. Look again at what you wait for.

        A task that is cancelled hears of it in its next turn, and others may have theirs before;
        `given_up` is called at once.
        """
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            if given_up is not None:
                given_up()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def wake(self) -> bool:
        """Whether anybody waited."""
        if not self._waiting:
            return False
        tasks, self._waiting = self._waiting, []
        for task in tasks:
            trio.lowlevel.reschedule(task)
        return True
