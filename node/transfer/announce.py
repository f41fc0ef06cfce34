"""Telling the DHT what this node holds, in batches, while the put goes on."""

from __future__ import annotations

import trio

from ...errors import MeshError
from ..store.protocol import Digest
from .context import TransferContext
from .failures import reason_of

_BATCH = 1024


class Announcer:
    """Collects chunks and announces them a batch at a time, in the nursery it is given.

    A failure is a warning, not an end: the chunks are safe, members can be asked directly, and the
    DHT announces again by itself.
    """

    def __init__(self, ctx: TransferContext, tasks: trio.Nursery) -> None:
        self._ctx = ctx
        self._tasks = tasks
        self._pending: list[tuple[Digest, int]] = []
        self._running = 0
        self._idle = trio.Event()
        self.warnings: list[str] = []

    def add(self, digest: Digest, size: int) -> None:
        """A chunk is durable here."""
        self._pending.append((digest, size))
        if len(self._pending) >= _BATCH:
            self._send()

    async def flush(self) -> None:
        """Announce what is left, and wait for all announcements."""
        self._send()
        while self._running:
            self._idle = trio.Event()
            await self._idle.wait()

    def _send(self) -> None:
        if self._pending:
            batch, self._pending = self._pending, []
            self._running += 1
            self._tasks.start_soon(self._announce, batch)

    async def _announce(self, batch: list[tuple[Digest, int]]) -> None:
        try:
            await self._ctx.dht.announce(batch)
        except MeshError as error:
            self.warnings.append(f"{len(batch)} chunks were not announced: {reason_of(error)}")
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
