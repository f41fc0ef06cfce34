"""What a node that does not run remembers of its transfers: its database, opened for one question.

No network, no identity: the answer names peers by their ids alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..config import Config
from .store import open_store
from .transfer.explain import Explained
from .transfer.trace_log import TRACES, TraceLog


class PastTransfers:
    """Answers as `Node.transfers` does."""

    def __init__(self, traces: TraceLog) -> None:
        self._traces = traces

    async def transfers(self, root: bytes | None, count: int) -> list[Explained]:
        """The last ones, newest first; with `root` only those of the link it names."""
        return [Explained(trace) for trace in await self._traces.latest(count, root)]


@asynccontextmanager
async def open_past_transfers(config: Config) -> AsyncIterator[PastTransfers]:
    """Open the store of the home that `config` is of.

    Raises:
        StoreLockedError: another process runs on this data directory.
        StoreError: the store cannot be opened.
    """
    async with open_store(
        config.paths.data_dir,
        quota=config.storage.quota or None,
        min_free=config.storage.min_free_disk,
        lock_path=config.paths.lock_file,
    ) as store:
        yield PastTransfers(TraceLog(store.key_value(TRACES)))
