"""How much is under way in a put: chunks in all, bytes at each peer, and what is late.

`max_concurrent_uploads` counts chunks that are being sent. One that is sent waits only for its
peer's disk, and makes room for the next: what keeps a peer's disk busy is many chunks in one
commit. (A limit of 1 is strict: nothing is sent before the last chunk is acknowledged.) What a
peer has not acknowledged is bounded apart, by about a second of what it has been seen to take, so
that a slow line never has more under way than it can finish before its deadlines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Literal

import trio

from ...dht.peer_id import PeerId
from ..exchange import PeerStatsTable
from .depth import AdaptiveDepth

_WINDOW_SECONDS = 1.0
_FIRST_WINDOW_BYTES = 4 << 20
_MOST_WINDOW_BYTES = 16 << 20
_LEAST_CHUNKS = 2
_SAMPLES = 64
_LATE_FACTOR = 3.0
_LEAST_LATE_SECONDS = 0.25
_LEAST_SILENT_SECONDS = 1.0
_HEDGE_SHARE = 0.05


class UploadSlots:
    """So many chunks are sent at once: a fixed number, or "auto", found out by trying."""

    def __init__(self, setting: int | Literal["auto"]) -> None:
        self._depth = AdaptiveDepth(trio.current_time()) if setting == "auto" else None
        total = self._depth.depth if self._depth is not None else setting
        assert isinstance(total, int)
        self._strict = total == 1
        self._limiter = trio.CapacityLimiter(total)

    @property
    def anybody_waits(self) -> bool:
        """Whether a chunk could be sent now if there were a slot."""
        return self._limiter.statistics().tasks_waiting > 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a slot, and hold it for the block, or until everything is sent."""
        turn = Turn(self._limiter, strict=self._strict)
        await self._limiter.acquire_on_behalf_of(turn)
        try:
            yield turn
        finally:
            turn.end()

    def acknowledged(self, nbytes: int) -> None:
        """A peer has made a copy of so many bytes."""
        if self._depth is not None:
            self._depth.arrived(nbytes, trio.current_time())
            self._limiter.total_tokens = self._depth.depth

    def timed_out(self, began: float) -> None:
        """A request sent at `began` was given up."""
        if self._depth is not None:
            self._depth.timed_out(began, trio.current_time())
            self._limiter.total_tokens = self._depth.depth


class Turn:
    """One chunk's slot. It is free again when all copies under way have been sent."""

    def __init__(self, limiter: trio.CapacityLimiter, *, strict: bool) -> None:
        self._limiter = limiter
        self._strict = strict
        self._sending = 0
        self._over = False

    def part(self) -> TurnPart:
        """A copy is about to be sent."""
        self._sending += 1
        return TurnPart(self._sent)

    def _sent(self) -> None:
        self._sending -= 1
        if not self._sending and not self._strict:
            self.end()

    def end(self) -> None:
        if not self._over:
            self._over = True
            self._limiter.release_on_behalf_of(self)


class TurnPart:
    """One copy's part in its chunk's turn."""

    def __init__(self, on_sent: Callable[[], None]) -> None:
        self._on_sent = on_sent
        self._is_sent = False

    def sent(self) -> None:
        """It has been sent, or will not be; said any number of times."""
        if not self._is_sent:
            self._is_sent = True
            self._on_sent()


class PeerWindows:
    """Bytes under way at each peer, against what it may have."""

    def __init__(self, stats: PeerStatsTable) -> None:
        self._stats = stats
        self._under_way: dict[PeerId, tuple[int, int]] = {}
        self._changed = trio.Event()

    def room(self, peer: PeerId, size: int) -> bool:
        """Whether `size` bytes more may be sent to `peer` now."""
        chunks, nbytes = self._under_way.get(peer, (0, 0))
        if chunks < _LEAST_CHUNKS:
            return True
        rate = self._stats[peer].upload.rate()
        window = _FIRST_WINDOW_BYTES if rate is None else rate * _WINDOW_SECONDS
        return nbytes + size <= min(window, _MOST_WINDOW_BYTES)

    def seconds(self, peer: PeerId) -> float:
        """How long what is under way at `peer` takes at its measured rate; 0.0 if there is none."""
        rate = self._stats[peer].upload.rate()
        return self._under_way.get(peer, (0, 0))[1] / rate if rate else 0.0

    def begin(self, peer: PeerId, size: int) -> None:
        chunks, nbytes = self._under_way.get(peer, (0, 0))
        self._under_way[peer] = chunks + 1, nbytes + size

    def end(self, peer: PeerId, size: int) -> None:
        chunks, nbytes = self._under_way[peer]
        self._under_way[peer] = chunks - 1, nbytes - size
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait until some peer has more room than now."""
        await self._changed.wait()


class Lateness:
    """When a copy is late, and whether another peer may be asked for it as well.

    The long tail of a put is cut as Storj cuts it: what takes longer than almost all others is
    begun a second time elsewhere, and whoever is first wins. The bytes for that stay below 5 % of
    what there is to place; only the very first is always allowed, or small puts had none.

    Args:
        first_secs: what is late as long as nothing is known.
    """

    def __init__(self, first_secs: float) -> None:
        self._first_secs = first_secs
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
        self._wanted = 0
        self._spent = 0

    def wanted(self, nbytes: int) -> None:
        """So many bytes more are to be placed, all copies counted."""
        self._wanted += nbytes

    def took(self, seconds: float) -> None:
        """A copy was made, in so many seconds."""
        self._seconds.append(seconds)

    def late_after(self) -> float:
        """Seconds after which a copy under way is late.

        From the median: of three peers one may be slow, and a high percentile would be its own.
        """
        if not self._seconds:
            return self._first_secs
        return max(_LATE_FACTOR * median(self._seconds), _LEAST_LATE_SECONDS)

    def silent_after(self) -> float:
        """Seconds after which a peer that gives no answer at all, while it owes some, is silent."""
        return max(self.late_after(), _LEAST_SILENT_SECONDS)

    def may_spend(self, size: int) -> bool:
        """Whether `size` bytes may be sent a second time."""
        return not self._spent or self._spent + size <= _HEDGE_SHARE * self._wanted

    def spend(self, size: int) -> None:
        self._spent += size
