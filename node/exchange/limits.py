"""What one peer, and all peers together, may cost the server."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from .serving import Serving
from .settings import ServerLimits


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
    """At most `total` units (bytes, requests) taken at once; those who wait are served in order."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def total(self) -> int:
        return self._total

    @property
    def taken(self) -> int:
        return self._taken

    def try_take(self, size: int) -> bool:
        """Take `size` units if that is possible without overtaking anyone."""
        if self._waiting or self._taken + size > self._total:
            return False
        self._taken += size
        return True

    async def take(self, size: int) -> None:
        """Wait for `size` units (at most `total`) and take them."""
        if self.try_take(size):
            return
        turn = (size, trio.Event())
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except BaseException:
            # Granted in the same instant as the cancellation, or still queued (perhaps in front of
            # somebody who needs less).
            if turn[1].is_set():
                self.give_back(size)
            else:
                self._waiting.remove(turn)
                self._grant()
            raise

    def give_back(self, size: int) -> None:
        self._taken -= size
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._taken + self._waiting[0][0] <= self._total:
            size, granted = self._waiting.popleft()
            self._taken += size
            granted.set()


@dataclass(slots=True, eq=False)
class PeerAccount:
    """What one peer uses now, over all its streams."""

    bucket: TokenBucket
    memory: Budget
    line: Budget
    """Cost of all requests that were let in: those that are served and those that wait."""
    turns: trio.Semaphore
    """Who has one is served. Nobody waits for memory while having one: those who have memory
    (small bodies are read before their turn) wait for turns."""
    streams: int = 0
    owed_bytes: int = 0
    """Of bodies that may be sent and are not here yet; memory is reserved for them."""

    async def take_turn(self, serving: Serving) -> None:
        await self.turns.acquire()
        serving.has_turn = True

    def leave_turn(self, serving: Serving) -> None:
        if serving.has_turn:
            serving.has_turn = False
            self.turns.release()


class Accounts:
    """The accounts of all peers, and the memory they share."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._accounts: dict[bytes, PeerAccount] = {}
        self.memory = Budget(limits.memory_bytes)

    def of(self, peer: bytes) -> PeerAccount:
        account = self._accounts.get(peer)
        if account is None:
            self._drop_unused()
            account = self._accounts[peer] = PeerAccount(
                TokenBucket(
                    self._limits.requests_per_second,
                    self._limits.request_burst,
                    trio.current_time(),
                ),
                Budget(self._limits.memory_per_peer),
                Budget(self._limits.requests_per_peer + self._limits.waiting_per_peer),
                trio.Semaphore(self._limits.requests_per_peer),
            )
        return account

    def _drop_unused(self) -> None:
        # An account with debts outlives its streams, or reconnecting would clear them.
        now = trio.current_time()
        for peer, account in list(self._accounts.items()):
            if not account.streams and account.bucket.is_full(now):
                del self._accounts[peer]

    def try_reserve(self, account: PeerAccount, size: int) -> bool:
        """Take `size` bytes if nobody has to wait for them; `release` gives them back."""
        if not account.memory.try_take(size):
            return False
        if self.memory.try_take(size):
            return True
        account.memory.give_back(size)
        return False

    def release(self, account: PeerAccount, size: int) -> None:
        self.memory.give_back(size)
        account.memory.give_back(size)

    @asynccontextmanager
    async def reserved(self, account: PeerAccount, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes of memory for one body.

        A peer waits for its own earlier bodies as long as it takes (its slowness is its own), but
        for those of others only `memory_wait_secs`.

        Raises:
            trio.TooSlowError: others hold the memory.
        """
        await account.memory.take(size)
        try:
            with trio.fail_after(self._limits.memory_wait_secs):
                await self.memory.take(size)
            try:
                yield
            finally:
                self.memory.give_back(size)
        finally:
            account.memory.give_back(size)
