"""A bound on bytes held at once: what keeps memory flat whatever the size of a file."""

from __future__ import annotations

from collections import deque

import trio


class ByteBudget:
    """First come, first served permission to hold so many bytes.

    A request larger than the whole budget is granted when nothing else is held: it must go through
    some time, and alone is the least harm.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def held(self) -> int:
        return self._held

    def _fits(self, nbytes: int) -> bool:
        return self._held == 0 or self._held + nbytes <= self._total

    async def acquire(self, nbytes: int) -> None:
        """Wait until `nbytes` more may be held."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._waiting and self._fits(nbytes):
            self._held += nbytes
            return
        granted = trio.Event()
        request = (nbytes, granted)
        self._waiting.append(request)
        try:
            await granted.wait()
        except trio.Cancelled:
            if granted.is_set():
                self._held -= nbytes
            else:
                self._waiting.remove(request)
            self._grant()
            raise

    def release(self, nbytes: int) -> None:
        """Give back what was acquired."""
        self._held -= nbytes
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            nbytes, granted = self._waiting.popleft()
            self._held += nbytes
            granted.set()
