"""Small persistent tables in the store's database, for rooms that keep a little state.

Unlike chunks they are written nowhere else: should the database ever be damaged beyond use, their
content stays behind in the file set aside, and the rooms that use them start afresh.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from .database import Database
from .gate import Gate

T = TypeVar("T")

_PAGE = 1_000

Row = tuple[int, bytes, bytes, bytes, float]
"""kind, key, publisher, value, expires (seconds since the epoch)."""

RowKey = tuple[int, bytes, bytes]
"""kind, key, publisher."""


class Table:
    """Runs the statements of its subclasses in a thread, while the store is open."""

    def __init__(self, database: Database, gate: Gate, limiter: trio.CapacityLimiter) -> None:
        self._database = database
        self._gate = gate
        self._limiter = limiter

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with self._gate.enter():
            return await trio.to_thread.run_sync(work, limiter=self._limiter)


class KeyValue(Table):
    """Keys and values (bytes) of one namespace. A write that returned survives a power cut."""

    def __init__(
        self, database: Database, gate: Gate, limiter: trio.CapacityLimiter, namespace: str
    ) -> None:
        super().__init__(database, gate, limiter)
        self._namespace = namespace

    async def get(self, key: bytes) -> bytes | None:
        def work() -> bytes | None:
            with self._database.read() as db:
                row = db.execute(
                    "SELECT value FROM key_values WHERE namespace = ? AND key = ?",
                    (self._namespace, key),
                ).fetchone()
            return row[0] if row else None

        return await self._in_thread(work)

    async def put(self, key: bytes, value: bytes) -> None:
        await self.put_many([(key, value)])

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """All of them or, on an error, none."""
        rows = [(self._namespace, key, value) for key, value in items]

        def work() -> None:
            with self._database.write(durable=True) as db:
                db.executemany("INSERT OR REPLACE INTO key_values VALUES (?, ?, ?)", rows)

        await self._in_thread(work)

    async def delete(self, key: bytes) -> None:
        """Remove it, if it is there."""

        def work() -> None:
            with self._database.write(durable=True) as db:
                db.execute(
                    "DELETE FROM key_values WHERE namespace = ? AND key = ?",
                    (self._namespace, key),
                )

        await self._in_thread(work)

    async def note(self, items: Sequence[tuple[bytes, bytes]], gone: Sequence[bytes] = ()) -> None:
        """Put `items` and delete the keys `gone`, all or none, without waiting for the disk: it
        survives the process, not necessarily a power cut."""

        def work() -> None:
            with self._database.write() as db:
                db.executemany(
                    "INSERT OR REPLACE INTO key_values VALUES (?, ?, ?)",
                    [(self._namespace, key, value) for key, value in items],
                )
                db.executemany(
                    "DELETE FROM key_values WHERE namespace = ? AND key = ?",
                    [(self._namespace, key) for key in gone],
                )

        await self._in_thread(work)

    async def items(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """All of them in key order; read in pages, tolerant of changes meanwhile."""
        after: bytes | None = None
        while True:
            page = await self._in_thread(partial(self._page, after))
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def _page(self, after: bytes | None) -> list[tuple[bytes, bytes]]:
        beyond = "" if after is None else "AND key > ?"
        arguments = (self._namespace,) if after is None else (self._namespace, after)
        with self._database.read() as db:
            return db.execute(
                f"SELECT key, value FROM key_values WHERE namespace = ? {beyond}"
                f" ORDER BY key LIMIT {_PAGE}",
                arguments,
            ).fetchall()


class RecordTable(Table):
    """DHT records. A write that returned survives the process, not necessarily a power cut:
    records are published again anyway, and so need not wait for the disk."""

    async def load(self) -> list[Row]:
        """All rows; see `load_all` for tables that may be large."""
        return [row async for row in self.load_all()]

    async def load_all(self) -> AsyncIterator[Row]:
        """All rows in key order; read in pages, tolerant of changes meanwhile."""
        after: RowKey | None = None
        while True:
            page = await self._in_thread(partial(self._page, after))
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            after = page[-1][:3]

    async def save(self, rows: Sequence[Row]) -> None:
        """Insert or replace, all of them or, on an error, none."""

        def work() -> None:
            with self._database.write() as db:
                db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)", rows)

        await self._in_thread(work)

    async def delete(self, keys: Sequence[RowKey]) -> None:
        """Remove those of `keys` that are there."""

        def work() -> None:
            with self._database.write() as db:
                db.executemany(
                    "DELETE FROM records WHERE kind = ? AND key = ? AND publisher = ?", keys
                )

        await self._in_thread(work)

    async def delete_expired(self, now: float) -> int:
        """Remove what expired at or before `now` (seconds since the epoch); returns how many."""

        def work() -> int:
            with self._database.write() as db:
                return db.execute("DELETE FROM records WHERE expires <= ?", (now,)).rowcount

        return await self._in_thread(work)

    def _page(self, after: RowKey | None) -> list[Row]:
        beyond = "" if after is None else "WHERE (kind, key, publisher) > (?, ?, ?)"
        with self._database.read() as db:
            return db.execute(
                f"SELECT kind, key, publisher, value, expires FROM records {beyond}"
                f" ORDER BY kind, key, publisher LIMIT {_PAGE}",
                after or (),
            ).fetchall()
