"""Closes connections that nobody uses; `idle_choice.py` says which ones.

There is a task for it only while a host has more connections than its low mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import trio

from .idle_choice import Marks, Standing, dispensable, giving_way
from .limits import HostLimits

_ROUNDS_PER_PERIOD = 10

C = TypeVar("C")


class Trimmer(Generic[C]):
    """Watches over the connections of one host.

    Args:
        nursery: of the host; the task runs there.
        count: how many peers are connected; asked often, so it must cost nothing.
        inbound: how many connections count against `HostLimits.max_connections`; else all.
        standings: all connections that take streams, as they are now.
        leave: closes one in order, however long that takes.
        end: closes one at once.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        limits: HostLimits,
        *,
        count: Callable[[], int],
        inbound: Callable[[], int] | None = None,
        standings: Callable[[], Sequence[Standing[C]]],
        leave: Callable[[C], None],
        end: Callable[[C], None],
    ) -> None:
        self.closed_idle = 0
        self.gave_way = 0
        """Idle connections that were closed so that a newcomer could stay."""
        self._nursery = nursery
        self._most_inbound = limits.max_connections
        self._marks = Marks(
            low=limits.connections_low,
            high=max(limits.connections_low, limits.connections_high),
            idle_after=limits.idle_after,
            grace=min(limits.idle_grace, limits.idle_after),
        )
        self._count = count
        self._inbound = inbound or count
        self._standings = standings
        self._leave = leave
        self._end = end
        self._running = False

    def gained(self) -> None:
        """There is one connection more."""
        if not self._running and self._count() > self._marks.low:
            self._running = True
            self._nursery.start_soon(self._run)

    def has_room(self) -> bool:
        """Whether one more inbound connection could be had."""
        return self._inbound() < self._most_inbound or self._giving_way() is not None

    def make_room(self) -> bool:
        """Have room for one more inbound connection, at the cost of an idle one if need be."""
        if self._inbound() < self._most_inbound:
            return True
        idle = self._giving_way()
        if idle is None:
            return False
        self._end(idle)
        self.gave_way += 1
        return True

    def _giving_way(self) -> C | None:
        return giving_way(self._standings(), self._marks.grace)

    async def _run(self) -> None:
        marks = self._marks
        try:
            while self._count() > marks.low:
                self._trim()
                await trio.sleep(min(marks.idle_after / _ROUNDS_PER_PERIOD, marks.grace))
        finally:
            self._running = False

    def _trim(self) -> None:
        closing = dispensable(self._standings(), self._marks)
        for connection in closing:
            self._leave(connection)
        self.closed_idle += len(closing)
