"""What one peer, and all peers together, may cost the server."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ..store.protocol import MAX_CHUNK_BYTES
from .lanes import LEAST_SHARE, Lane
from .serving import Serving
from .settings import ServerLimits

_Waiting = deque[tuple[int, trio.Event]]


class TokenBucket:
    """`rate` tokens per second, at most `burst` saved up; it may be overdrawn by as much.

    The overdraft is what requests wait for that came too early. It makes ignoring a refusal
    pointless: a refused request is charged too.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._tokens + (now - self._at) * self._rate, self._burst)
            self._at = now

    def take(self, cost: float, now: float) -> float:
        """Charge `cost`, at most `burst`; returns the seconds after which it is granted, or 0.0."""
        self._refill(now)
        # More than `burst` could never be met by saving.
        self._tokens -= min(cost, self._burst)
        return -min(0.0, self._tokens) / self._rate

    def overdrawn(self, now: float) -> float:
        """Seconds until the overdraft is within its limit again; 0.0 when it is."""
        self._refill(now)
        return max(-(self._tokens + self._burst) / self._rate, 0.0)

    def is_full(self, now: float) -> bool:
        self._refill(now)
        return self._tokens >= self._burst


class Budget:
    """At most `total` units (bytes, requests) taken at once, at most `low` of them by lower lanes.

    Those who wait are served in order, the interactive ones first, but for one grant in
    `1 / LEAST_SHARE`.
    """

    def __init__(self, total: int, low: int | None = None) -> None:
        self._total = total
        self._low = total if low is None else low
        self._taken = 0
        self._taken_low = 0
        self._waiting: tuple[_Waiting, _Waiting] = (deque(), deque())
        self._in_a_row = 0
        """Grants to interactive ones while others waited."""

    @property
    def total(self) -> int:
        return self._total

    @property
    def taken(self) -> int:
        return self._taken

    def most(self, lane: Lane) -> int:
        """The most that one may take."""
        return self._low if lane.yields else self._total

    def _fits(self, size: int, low: bool) -> bool:
        if self._taken + size > self._total:
            return False
        return not low or self._taken_low + size <= self._low

    def try_take(self, size: int, lane: Lane = Lane.INTERACTIVE) -> bool:
        """Take `size` units if that is possible without overtaking anyone."""
        low = lane.yields
        if self._waiting[low] or (low and self._waiting[0]) or not self._fits(size, low):
            return False
        self._take(size, low)
        return True

    def _take(self, size: int, low: bool) -> None:
        self._taken += size
        self._taken_low += size * low

    async def take(self, size: int, lane: Lane = Lane.INTERACTIVE) -> None:
        """Wait for `size` units (at most `most`) and take them."""
        if self.try_take(size, lane):
            return
        turn = (size, trio.Event())
        waiting = self._waiting[lane.yields]
        waiting.append(turn)
        try:
            await turn[1].wait()
        except BaseException:
            # Granted in the same instant as the cancellation, or still queued (perhaps in front of
            # somebody who needs less).
            if turn[1].is_set():
                self.give_back(size, lane)
            else:
                waiting.remove(turn)
                self._grant()
            raise

    def give_back(self, size: int, lane: Lane = Lane.INTERACTIVE) -> None:
        self._taken -= size
        self._taken_low -= size * lane.yields
        self._grant()

    def _grant(self) -> None:
        while (low := self._next()) is not None:
            size, granted = self._waiting[low].popleft()
            self._in_a_row = 0 if low or not self._waiting[1] else self._in_a_row + 1
            self._take(size, low)
            granted.set()

    def _next(self) -> bool | None:
        """Whether one of the lower lanes is next; None: nobody fits."""
        first, low = self._waiting
        low_fits = bool(low) and self._fits(low[0][0], True)
        if low_fits and (not first or self._in_a_row + 1 >= 1 / LEAST_SHARE):
            return True
        if not first:
            return None
        # The first in line is not overtaken, or it might never find enough at once.
        return False if self._fits(first[0][0], False) else None


@dataclass(slots=True, eq=False)
class PeerAccount:
    """What one peer uses now, over all its streams."""

    bucket: TokenBucket
    memory: Budget
    line: Budget
    """Cost of all requests that were let in: those that are served and those that wait."""
    turns: Budget
    """Who has one is served. Nobody waits for memory while having one: those who have memory
    (small bodies are read before their turn) wait for turns."""
    streams: int = 0
    owed_bytes: int = 0
    """Of bodies that may be sent and are not here yet; memory is reserved for them."""

    async def take_turn(self, serving: Serving) -> None:
        await self.turns.take(1, serving.lane)
        serving.has_turn = True

    def leave_turn(self, serving: Serving) -> None:
        if serving.has_turn:
            serving.has_turn = False
            self.turns.give_back(1, serving.lane)


class Accounts:
    """The accounts of all peers, and the memory they share."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._accounts: dict[bytes, PeerAccount] = {}
        self.memory = _memory(limits.memory_bytes)

    def of(self, peer: bytes) -> PeerAccount:
        account = self._accounts.get(peer)
        if account is None:
            self._drop_unused()
            line = self._limits.requests_per_peer + self._limits.waiting_per_peer
            account = self._accounts[peer] = PeerAccount(
                TokenBucket(
                    self._limits.requests_per_second,
                    self._limits.request_burst,
                    trio.current_time(),
                ),
                _memory(self._limits.memory_per_peer),
                Budget(line, line // 2),
                Budget(self._limits.requests_per_peer, max(self._limits.requests_per_peer // 4, 1)),
            )
        return account

    def _drop_unused(self) -> None:
        # An account with debts outlives its streams, or reconnecting would clear them.
        now = trio.current_time()
        for peer, account in list(self._accounts.items()):
            if not account.streams and account.bucket.is_full(now):
                del self._accounts[peer]

    def try_reserve(self, account: PeerAccount, size: int, lane: Lane) -> bool:
        """Take `size` bytes if nobody has to wait for them; `release` gives them back."""
        if not account.memory.try_take(size, lane):
            return False
        if self.memory.try_take(size, lane):
            return True
        account.memory.give_back(size, lane)
        return False

    def release(self, account: PeerAccount, size: int, lane: Lane) -> None:
        self.memory.give_back(size, lane)
        account.memory.give_back(size, lane)

    @asynccontextmanager
    async def reserved(self, account: PeerAccount, size: int, lane: Lane) -> AsyncIterator[None]:
        """Hold `size` bytes of memory for one body.

        A peer waits for its own earlier bodies as long as it takes (its slowness is its own), but
        for those of others only `memory_wait_secs`.

        Raises:
            trio.TooSlowError: others hold the memory.
        """
        await account.memory.take(size, lane)
        try:
            with trio.fail_after(self._limits.memory_wait_secs):
                await self.memory.take(size, lane)
            try:
                yield
            finally:
                self.memory.give_back(size, lane)
        finally:
            account.memory.give_back(size, lane)


def _memory(size: int) -> Budget:
    """For bodies: half of it, but room for the largest, is for lower lanes."""
    return Budget(size, min(max(size // 2, MAX_CHUNK_BYTES), size))
