"""Runs lookups: asks the peers a `Lookup` chooses, and never waits long for a frozen one.

Two bounds keep frozen peers harmless. A peer whose answer is late no longer counts against the
lookup's concurrency, so the next candidate starts at once. And once only late peers are missing,
the whole lookup waits for them for one second in all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import trio

from .context import DhtContext
from .fanout import Fanout, Reply
from .kad_wire import PeerAddresses
from .keyspace import position
from .lookup import Paths
from .peer_id import PeerId
from .trace import QueryReport, Trace, Traces

_PATIENCE = 1.0
_LOOKUP_LIMIT = 20.0

_V = TypeVar("_V")
_Replies = Fanout[tuple[_V | None, list[PeerId]]]
Ask = Callable[[PeerId], Awaitable[tuple[_V | None, tuple[PeerAddresses, ...]]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to walk: `enough` values end it, over at most `paths` paths that share no peer.

    `seeds` are asked besides the nearest members of the routing table. `upkeep`: nobody waits for
    the result, and its report is kept apart.
    """

    kind: str
    enough: int = 1
    paths: int = 1
    seeds: Sequence[PeerId] = ()
    upkeep: bool = False


@dataclass(frozen=True, slots=True)
class LookupResult(Generic[_V]):
    """`closest` answered, nearest first; `values` were found, and by whom, in order of arrival."""

    closest: list[PeerId]
    values: list[tuple[PeerId, _V]]
    report: QueryReport

    @property
    def value(self) -> _V | None:
        """The first value found, if any was."""
        return self.values[0][1] if self.values else None

    @property
    def asked(self) -> int:
        return self.report.asked

    @property
    def hops(self) -> int:
        return self.report.hops


@dataclass(slots=True)
class _Walk(Generic[_V]):
    """One lookup under way."""

    paths: Paths
    replies: _Replies[_V]
    ask: Ask[_V]
    enough: int
    trace: Trace
    values: list[tuple[PeerId, _V]]


class Queries:
    """Iterative lookups over the live network."""

    def __init__(self, context: DhtContext, traces: Traces) -> None:
        self._nursery = context.nursery
        self._contacts = context.contacts
        self._settings = context.settings
        self._counters = context.counters
        self._traces = traces

    async def run(self, key: bytes, ask: Ask[_V], plan: Plan) -> LookupResult[_V]:
        """Walk towards the position of `key`; stop at enough values, or at the k nearest."""
        paths = self._begin(position(key), plan)
        replies: _Replies[_V] = Fanout(self._nursery, self._counters)
        trace = self._traces.begin(plan.kind, key, upkeep=plan.upkeep)
        walk = _Walk(paths, replies, ask, plan.enough, trace, [])
        self._counters.add("lookups")
        try:
            with trio.move_on_after(_LOOKUP_LIMIT):
                await self._walk(walk)
        finally:
            replies.close()
            found = int(bool(walk.values))
            report = trace.close(found=found, hops=paths.hops, paths=len(paths))
        return LookupResult(paths.closest(), walk.values, report)

    def _begin(self, target: int, plan: Plan) -> Paths:
        settings = self._settings
        near = dict.fromkeys([*plan.seeds, *self._contacts.table.closest(target, settings.k)])
        # With nobody believed alive, the dead are worth a try.
        alive = [peer for peer in near if not self._contacts.is_down(peer)] or list(near)
        return Paths(
            target,
            alive,
            count=plan.paths,
            k=settings.k,
            alpha=settings.alpha,
            max_alpha=settings.max_alpha,
        )

    async def _walk(self, walk: _Walk[_V]) -> None:
        patience = _PATIENCE
        paths, replies = walk.paths, walk.replies
        while True:
            while (peer := paths.next_peer()) is not None:
                late_after = self._contacts.health.late_after(peer)
                replies.start(peer, partial(self._ask, walk, peer), late_after)
            if paths.settled and not (paths.late_matters and replies.pending):
                return
            if not replies.pending:
                return
            began = trio.current_time()
            only_late = all(late_at <= began for late_at in replies.pending.values())
            if only_late and patience <= 0:
                return
            reply = await replies.next(self._wait_until(replies, began, patience))
            if only_late:
                patience -= trio.current_time() - began
            self._mark_late(paths, replies)
            if reply is not None and self._take(walk, reply):
                return

    async def _ask(self, walk: _Walk[_V], peer: PeerId) -> tuple[_V | None, list[PeerId]]:
        hop, path = walk.paths.hop(peer), walk.paths.path(peer)
        with walk.trace.asking(peer, hop=hop, path=path):
            value, closer = await walk.ask(peer)
        return value, self._contacts.learn(closer)

    def _wait_until(
        self,
        replies: _Replies[_V],
        now: float,
        patience: float,
    ) -> float:
        """When the next peer becomes late; when all are, when patience ends."""
        coming = [late_at for late_at in replies.pending.values() if late_at > now]
        return min(coming, default=now + patience)

    def _mark_late(self, paths: Paths, replies: _Replies[_V]) -> None:
        now = trio.current_time()
        for peer, late_at in replies.pending.items():
            if late_at <= now:
                paths.late(peer)

    def _take(self, walk: _Walk[_V], reply: Reply[tuple[_V | None, list[PeerId]]]) -> bool:
        """Take an answer in; returns whether it was enough."""
        if reply.answer is None:
            walk.paths.failed(reply.peer)
            return False
        value, known = reply.answer
        alive = [peer for peer in known if not self._contacts.is_down(peer)]
        walk.paths.answered(reply.peer, alive)
        if value is not None:
            walk.values.append((reply.peer, value))
        return len(walk.values) >= walk.enough
