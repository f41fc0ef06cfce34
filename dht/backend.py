"""Where the DHT's records survive a restart, and how they get there.

The store room implements `RecordBackend` over its database; `MemoryBackend` serves tests and nodes
that keep nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Protocol

import trio

from ..errors import MeshError
from .counters import Counters

Row = tuple[int, bytes, bytes, bytes, float]
"""(kind, key, publisher, value, expires as Unix time); the first three identify a row."""

RowId = tuple[int, bytes, bytes]

NEVER = 253_402_300_800.0
"""`expires` of a row that stays until it is deleted: the year 10000."""

_MAX_PENDING = 200_000
_ROWS_PER_SAVE = 2_000


class RowKind(IntEnum):
    """What a row holds; the numbers are part of the format on disk."""

    CHUNK = 1
    """As CHUNKS, of one chunk; no longer written. key: digest, value: packed size and zone."""
    MANIFEST = 2
    """key: digest, publisher: who put it, value: the manifest."""
    OWN_CHUNK = 3
    """key: digest, value: packed size."""
    OWN_MANIFEST = 4
    """key: digest, value: the manifest."""
    PEER = 5
    """key: peer id, value: msgpack of addresses, RTT, last seen."""
    SCHEDULE = 6
    """key: name of a task, value: its progress."""
    VALUE = 7
    """A signed value kept for the mesh. key: as on the wire, publisher: who answers for it."""
    OWN_VALUE = 8
    """A signed value of ours, repeated until it expires. key: as on the wire."""
    NOTICE = 9
    """key: as on the wire, publisher: digest of the notice, value: the notice."""
    OWN_NOTICE = 10
    """A notice of ours, repeated until it expires; columns as for NOTICE."""
    UNTOLD = 11
    """key: number of a batch, value: own digests that too few peers have been told of."""
    PEER_RECORD = 12
    """key: peer id, value: msgpack of its signed record, until when believed, RTT."""
    CHUNKS = 13
    """key: number of the row, publisher: holder, value: many records; see `record_log`."""


class RecordBackend(Protocol):
    """A table of rows. Calls never overlap. Failures are StoreError, or QuotaError: no room."""

    async def load(self) -> list[Row]: ...

    async def save(self, rows: list[Row], /) -> None:
        """Insert or replace, in one transaction."""
        ...

    async def delete(self, rows: list[RowId], /) -> None: ...


class MemoryBackend:
    """Rows in memory: for tests, and for a node whose DHT state need not outlive it."""

    def __init__(self) -> None:
        self.rows: dict[RowId, Row] = {}

    async def load(self) -> list[Row]:
        await trio.lowlevel.checkpoint()
        return list(self.rows.values())

    async def save(self, rows: list[Row], /) -> None:
        await trio.lowlevel.checkpoint()
        self.rows.update({row[:3]: row for row in rows})

    async def delete(self, rows: list[RowId], /) -> None:
        await trio.lowlevel.checkpoint()
        for row in rows:
            self.rows.pop(row, None)


class RowWriter:
    """Write-behind: changes gather and go to the backend in batches.

    A change is lost only when the process dies within one flush interval; others then still hold
    the record, and its publisher repeats it.
    """

    def __init__(self, backend: RecordBackend, counters: Counters) -> None:
        self._backend = backend
        self._counters = counters
        self._pending: dict[RowId, Row | None] = {}
        self._gathering: dict[Callable[[], Awaitable[None]], None] = {}
        self._lock = trio.Lock()
        self._changed = trio.Event()

    def save(self, kind: RowKind, key: bytes, publisher: bytes, value: bytes, at: float) -> None:
        """Remember a row; `at` is when it expires."""
        self._put((int(kind), key, publisher), (int(kind), key, publisher, value, at))

    def delete(self, kind: RowKind, key: bytes, publisher: bytes) -> None:
        self._put((int(kind), key, publisher), None)

    def _put(self, row_id: RowId, row: Row | None) -> None:
        if len(self._pending) >= _MAX_PENDING and row_id not in self._pending:
            # Only a backend that has been failing for long lets this fill up.
            self._counters.add("rows_dropped")
            return
        self._pending[row_id] = row
        self._changed.set()

    def before_flush(self, gathered: Callable[[], Awaitable[None]]) -> None:
        """Have `gathered` called once, before the next flush, to save what came together by then.

        It is called again when it is cut short.
        """
        self._gathering[gathered] = None
        self._changed.set()

    async def wait_changed(self) -> None:
        """Wait until there is something to write."""
        if not self._pending and not self._gathering:
            self._changed = trio.Event()
        await self._changed.wait()

    async def flush(self) -> None:
        """Write everything gathered so far.

        Raises:
            StoreError: the backend failed; the changes stay pending.
            QuotaError: its disk is full; likewise.
        """
        async with self._lock:
            while self._pending or self._gathering:
                for gathered in list(self._gathering):
                    del self._gathering[gathered]
                    try:
                        await gathered()
                    except BaseException:
                        self.before_flush(gathered)
                        raise
                ids = list(self._pending)[:_ROWS_PER_SAVE]
                batch = {row_id: self._pending.pop(row_id) for row_id in ids}
                try:
                    await self._write(batch)
                except BaseException:
                    self._pending = {**batch, **self._pending}
                    raise

    async def _write(self, batch: dict[RowId, Row | None]) -> None:
        rows = [row for row in batch.values() if row is not None]
        gone = [row_id for row_id, row in batch.items() if row is None]
        if rows:
            await self._backend.save(rows)
        if gone:
            await self._backend.delete(gone)
        self._counters.add("rows_written", len(batch))

    async def try_flush(self) -> Exception | None:
        """Flush; what a failing or full disk raises is counted and returned, not raised.

        The DHT goes on without its disk; the changes stay pending.
        """
        try:
            await self.flush()
        except MeshError as error:
            self._counters.add("flush_failures")
            return error
        return None
