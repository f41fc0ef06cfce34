"""After a start: the mesh is told of chunks that are here and were never announced.

A chunk is announced moments after it is durable; a crash in between leaves one that nobody would
find, and whose owner has a receipt for it. What the DHT was told of before a crash it tells on by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog
import trio

from ...errors import MeshError
from ..store.protocol import ChunkStore, Digest

log = structlog.get_logger(__name__)

_PAGE = 1000
_PAUSE_SECS = 0.01


class Known(Protocol):
    """The part of the DHT this needs."""

    def holds(self, digest: bytes) -> bool: ...


class Unannounced(Protocol):
    """The part of `Promises` this needs."""

    async def announce_unheard(self, chunks: Sequence[tuple[Digest, int]]) -> int: ...


async def catch_up(chunks: ChunkStore, dht: Known, promises: Unannounced) -> None:
    """Look once through all chunks here; failing to is logged, and harms nothing else."""
    found = 0
    page: list[tuple[Digest, int]] = []
    try:
        async for digest, size in chunks.list():
            if not dht.holds(digest):
                page.append((digest, size))
            if len(page) == _PAGE:
                found += await promises.announce_unheard(page)
                page = []
                await trio.sleep(_PAUSE_SECS)
        if page:
            found += await promises.announce_unheard(page)
    except MeshError as error:
        log.warning("announce_catch_up_failed", error=str(error), found=found)
    if found:
        log.info("announce_caught_up", chunks=found)
