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
from .lookup import Lookup
from .peer_id import PeerId

_PATIENCE = 1.0
_LOOKUP_LIMIT = 20.0

_V = TypeVar("_V")
_Replies = Fanout[tuple[_V | None, list[PeerId]]]
Ask = Callable[[PeerId], Awaitable[tuple[_V | None, tuple[PeerAddresses, ...]]]]


@dataclass(frozen=True, slots=True)
class LookupResult(Generic[_V]):
    """`closest` answered, nearest first; `value` is the first one found, if any was."""

    closest: list[PeerId]
    value: _V | None
    asked: int
    hops: int


class Queries:
    """Iterative lookups over the live network."""

    def __init__(self, context: DhtContext) -> None:
        self._nursery = context.nursery
        self._contacts = context.contacts
        self._settings = context.settings
        self._counters = context.counters

    async def run(
        self, key: bytes, ask: Ask[_V], *, seeds: Sequence[PeerId] = ()
    ) -> LookupResult[_V]:
        """Walk towards the position of `key`; stop at the first value, or at the k nearest."""
        lookup = self._begin(position(key), seeds)
        replies: _Replies[_V] = Fanout(self._nursery, self._counters)
        value: _V | None = None
        self._counters.add("lookups")
        try:
            with trio.move_on_after(_LOOKUP_LIMIT):
                value = await self._walk(lookup, replies, ask)
        finally:
            replies.close()
        return LookupResult(lookup.closest(), value, lookup.asked, lookup.hops)

    def _begin(self, target: int, seeds: Sequence[PeerId]) -> Lookup:
        settings = self._settings
        lookup = Lookup(target, k=settings.k, alpha=settings.alpha, max_alpha=settings.max_alpha)
        near = [*seeds, *self._contacts.table.closest(target, settings.k)]
        # With nobody believed alive, the dead are worth a try.
        lookup.seed([peer for peer in near if not self._contacts.is_down(peer)] or near)
        return lookup

    async def _walk(
        self,
        lookup: Lookup,
        replies: _Replies[_V],
        ask: Ask[_V],
    ) -> _V | None:
        patience = _PATIENCE
        while True:
            while (peer := lookup.next_peer()) is not None:
                late_after = self._contacts.health.late_after(peer)
                replies.start(peer, partial(self._ask, ask, peer), late_after)
            if lookup.settled and not (lookup.late_matters and replies.pending):
                return None
            if not replies.pending:
                return None
            began = trio.current_time()
            only_late = all(late_at <= began for late_at in replies.pending.values())
            if only_late and patience <= 0:
                return None
            reply = await replies.next(self._wait_until(replies, began, patience))
            if only_late:
                patience -= trio.current_time() - began
            self._mark_late(lookup, replies)
            if reply is not None and (value := self._take(lookup, reply)) is not None:
                return value

    async def _ask(self, ask: Ask[_V], peer: PeerId) -> tuple[_V | None, list[PeerId]]:
        value, closer = await ask(peer)
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

    def _mark_late(self, lookup: Lookup, replies: _Replies[_V]) -> None:
        now = trio.current_time()
        for peer, late_at in replies.pending.items():
            if late_at <= now:
                lookup.late(peer)

    def _take(self, lookup: Lookup, reply: Reply[tuple[_V | None, list[PeerId]]]) -> _V | None:
        if reply.answer is None:
            lookup.failed(reply.peer)
            return None
        value, known = reply.answer
        lookup.answered(reply.peer, [peer for peer in known if not self._contacts.is_down(peer)])
        return value
