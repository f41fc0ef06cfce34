"""Lets operations in while a resource is open, and lets them finish before it closes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ...errors import StoreError


class Gate:
    def __init__(self, what: str) -> None:
        self._what = what
        self._inside = 0
        self._closed = False
        self._empty = trio.Event()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Raises StoreError once the gate is closed."""
        if self._closed:
            raise StoreError(f"{self._what} is closed.")
        self._inside += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        if self._closed and not self._inside:
            self._empty.set()

    async def close(self) -> None:
        """Let nobody in any more and wait until those inside have left."""
        self._closed = True
        if self._inside:
            await self._empty.wait()
