"""Tells the DHT which chunks this node holds, in batches, behind the back of whoever stored them.

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


class Announcer:
    """A queue of (digest, size) drained into `Dht.announce`; `run` is its one task."""

    def __init__(self, dht: Announcing) -> None:
        self._dht = dht
        self._waiting: dict[bytes, int] = {}
        self._wake = trio.Event()

    @property
    def lag(self) -> int:
        """Chunks held here that have not been announced yet."""
        return len(self._waiting)

    def add(self, chunks: Sequence[tuple[bytes, int]]) -> None:
        """Queue chunks; never blocks."""
        self._waiting.update(chunks)
        self._wake.set()

    def forget(self, digests: Sequence[bytes]) -> None:
        """Drop queued chunks that are gone again."""
        for digest in digests:
            self._waiting.pop(digest, None)

    async def run(self) -> None:
        """Announce until cancelled."""
        pause = _FIRST_PAUSE_SECS
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(DELAY_SECS)
            while self._waiting:
                batch = list(self._waiting.items())[:BATCH_KEYS]
                try:
                    await self._dht.announce(batch)
                except MeshError as error:
                    log.warning("announce_failed", chunks=len(batch), error=str(error), retry=pause)
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECS)
                    continue
                pause = _FIRST_PAUSE_SECS
                for digest, _size in batch:
                    self._waiting.pop(digest, None)
