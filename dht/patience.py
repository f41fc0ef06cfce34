"""Asking again, when a peer that is busy says that it soon will not be.

An honest peer names the time its budget needs; a dishonest one could name any, again and again. So
little waiting is done for one question, and a peer that asks for more is left alone until then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ..errors import PeerRefusedError
from .counters import Counters
from .peer_id import PeerId
from .records_wire import BUSY

_TRIES = 3
_LONGEST_WAIT = 2.0
_LONGEST_REST = 60.0
_FORGET_ABOVE = 1024

_T = TypeVar("_T")


class Patience:
    """Remembers until when (trio time) peers want to be left alone."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._rests: dict[PeerId, float] = {}

    async def ask(self, peer: PeerId, question: Callable[[], Awaitable[_T]]) -> _T:
        """Ask; if `peer` is busy, up to two more times, waiting up to 2 s before each.

        Raises:
            PeerRefusedError: still busy, or for longer; or refused for another reason.
            PeerError, MembershipError: as `question`.
        """
        for left in reversed(range(_TRIES)):
            await self._wait(peer)
            try:
                return await question()
            except PeerRefusedError as error:
                if error.reason != BUSY or error.retry_after is None:
                    raise
                self._rest(peer, error.retry_after)
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _wait(self, peer: PeerId) -> None:
        wait = self._rests.get(peer, 0.0) - trio.current_time()
        if wait > _LONGEST_WAIT:
            raise PeerRefusedError(
                f"{peer.short} is busy for another {wait:.0f} s.", reason=BUSY, retry_after=wait
            )
        if wait > 0:
            self._counters.add("busy_waits")
            await trio.sleep(wait)

    def _rest(self, peer: PeerId, seconds: float) -> None:
        now = trio.current_time()
        if len(self._rests) >= _FORGET_ABOVE:
            self._rests = {p: until for p, until in self._rests.items() if until > now}
        self._rests[peer] = now + min(seconds, _LONGEST_REST)
