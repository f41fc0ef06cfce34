"""Group commit: many tasks ask, one of them commits for all that asked meanwhile.

There is no background task. The first to ask leads: it takes everything queued, commits it in a
worker thread, wakes those it committed for, and passes the lead to the first of those that came in
the meantime (the leader/follower scheme of LevelDB's write queue).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Ticket(Generic[R]):
    request: R
    weight: int
    taken: bool = False
    woken: trio.Event = field(default_factory=trio.Event)
    """Set when the request was committed, or when it is this task's turn to lead."""


class GroupCommit(Generic[R]):
    """
    Args:
        commit: blocks; puts the outcome of each request into the request itself.
        limiter: whose thread `commit` uses.
        max_weight: no more requests join a commit once those in it weigh this much.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[R]], None],
        limiter: trio.CapacityLimiter,
        max_weight: int,
    ) -> None:
        self._commit = commit
        self._limiter = limiter
        self._max_weight = max_weight
        self._queue: deque[_Ticket[R]] = deque()
        self._leader: _Ticket[R] | None = None

    async def submit(self, request: R, weight: int) -> None:
        """Return when a commit that included `request` has ended.

        Cancelled while queued, the request is withdrawn. Once a commit has taken it, cancellation
        waits for that commit (it reads the caller's buffers) and then goes on.
        """
        ticket = _Ticket(request, weight)
        self._queue.append(ticket)
        if self._leader is None:
            self._leader = ticket
        else:
            await self._wait(ticket)
        if self._leader is ticket:
            await self._lead()

    async def _wait(self, ticket: _Ticket[R]) -> None:
        try:
            await ticket.woken.wait()
        except trio.Cancelled:
            if ticket.taken:
                with trio.CancelScope(shield=True):
                    await ticket.woken.wait()
            else:
                self._queue.remove(ticket)
                if self._leader is ticket:
                    self._pass_on()
            raise

    async def _lead(self) -> None:
        batch = self._take()
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(
                    self._commit, [ticket.request for ticket in batch], limiter=self._limiter
                )
        finally:
            for ticket in batch:
                ticket.woken.set()
            self._pass_on()

    def _take(self) -> list[_Ticket[R]]:
        """The head of the queue, always with at least one ticket: the leader's own."""
        batch: list[_Ticket[R]] = []
        weight = 0
        while self._queue and (not batch or weight + self._queue[0].weight <= self._max_weight):
            ticket = self._queue.popleft()
            ticket.taken = True
            weight += ticket.weight
            batch.append(ticket)
        return batch

    def _pass_on(self) -> None:
        self._leader = self._queue[0] if self._queue else None
        if self._leader is not None:
            self._leader.woken.set()
