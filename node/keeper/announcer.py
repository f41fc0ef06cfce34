"""Tells the DHT which chunks this node holds and which no longer, in batches, in the background.

A peer's PUT is acknowledged when it is durable here; the chunk record follows within
`DELAY_SECS`, together with all that arrived meanwhile. What could not be announced is tried again
with growing pauses; `lag` says how many chunks the mesh does not know of yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog
import trio

from ...errors import MeshError

log = structlog.get_logger(__name__)

DELAY_SECS = 0.1
"""Long enough to gather a burst of PUTs into one batch, short enough for a get that follows."""

BATCH_KEYS = 4096
_FIRST_PAUSE_SECS = 1.0
_LONGEST_PAUSE_SECS = 60.0


class Announcing(Protocol):
    """The part of the DHT this needs."""

    async def announce(self, chunks: Sequence[tuple[bytes, int]]) -> object: ...
    async def tell_withdrawn(self, digests: Sequence[bytes]) -> object: ...


class Announcer:
    """A queue of (digest, size) drained into `Dht.announce`; `run` is its one task."""

    def __init__(self, dht: Announcing) -> None:
        self._dht = dht
        self._waiting: dict[bytes, int] = {}
        self._gone: dict[bytes, None] = {}
        self._wake = trio.Event()

    @property
    def lag(self) -> int:
        """Chunks held here that have not been announced yet."""
        return len(self._waiting)

    def add(self, chunks: Sequence[tuple[bytes, int]]) -> None:
        """Queue chunks; never blocks."""
        for digest, size in chunks:
            self._waiting[digest] = size
            self._gone.pop(digest, None)
        self._wake.set()

    def withdraw(self, digests: Sequence[bytes]) -> None:
        """Queue the news that these are gone; never blocks."""
        for digest in digests:
            self._waiting.pop(digest, None)
        self._gone.update(dict.fromkeys(digests))
        self._wake.set()

    async def run(self) -> None:
        """Announce until cancelled."""
        pause = _FIRST_PAUSE_SECS
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(DELAY_SECS)
            while self._waiting or self._gone:
                try:
                    await self._tell_gone()
                    await self._tell_new()
                except MeshError as error:
                    log.warning("announce_failed", lag=self.lag, error=str(error), retry=pause)
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECS)
                else:
                    pause = _FIRST_PAUSE_SECS

    async def _tell_gone(self) -> None:
        batch = list(self._gone)[:BATCH_KEYS]
        if batch:
            await self._dht.tell_withdrawn(batch)
            for digest in batch:
                self._gone.pop(digest, None)

    async def _tell_new(self) -> None:
        batch = list(self._waiting.items())[:BATCH_KEYS]
        if batch:
            await self._dht.announce(batch)
            for digest, _size in batch:
                self._waiting.pop(digest, None)
