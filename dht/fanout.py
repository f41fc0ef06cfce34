"""Questions to several peers at once, answered in the order the answers come.

The tasks belong to the DHT's nursery, not to the asker: an asker that has heard enough just stops
listening. A late answer then still teaches the routing table, and a good stream is not reset for
being second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

import trio

from ..errors import MembershipError, PeerError
from .boundary import as_peer_error
from .counters import Counters
from .peer_id import PeerId

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Reply(Generic[_T]):
    """What `peer` answered, or why it did not."""

    peer: PeerId
    answer: _T | None
    error: PeerError | MembershipError | None


class Fanout(Generic[_T]):
    """One asker's open questions. `pending` maps a peer to when its answer becomes late; `failed`
    counts replies that were none."""

    def __init__(self, nursery: trio.Nursery, counters: Counters) -> None:
        self._nursery = nursery
        self._counters = counters
        self._send, self._receive = trio.open_memory_channel[Reply[_T]](inf)
        self.pending: dict[PeerId, float] = {}
        self.failed = 0

    def start(self, peer: PeerId, call: Callable[[], Awaitable[_T]], late_after: float) -> None:
        """Ask `peer`; one question per peer at a time."""
        self.pending[peer] = trio.current_time() + late_after
        self._nursery.start_soon(self._run, peer, call)

    async def next(self, until: float = inf) -> Reply[_T] | None:
        """The next reply, or None when the (trio) time `until` comes first."""
        reply: Reply[_T] | None = None
        with trio.move_on_at(until):
            reply = await self._receive.receive()
        if reply is not None:
            self.pending.pop(reply.peer, None)
            self.failed += reply.error is not None
        return reply

    def close(self) -> None:
        """Stop listening; what is under way runs to its own deadline."""
        self._receive.close()

    async def _run(self, peer: PeerId, call: Callable[[], Awaitable[_T]]) -> None:
        reply: Reply[_T]
        try:
            reply = Reply(peer, await call(), None)
        except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the DHT
            reply = Reply(peer, None, as_peer_error(error, peer, self._counters))
        try:
            self._send.send_nowait(reply)
        except trio.BrokenResourceError:
            # Nobody listens any more; the answer has done its work in the routing table.
            return
