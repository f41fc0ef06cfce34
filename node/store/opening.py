"""Opening a data directory, in this order: lock, format, database, recovery; closing in reverse."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from .database import Database, open_database
from .files import Files, OsFiles, disk_error
from .gate import Gate
from .holds import NO_ROOT, UNKNOWN_OWNER, HoldTable
from .index import Index
from .layout import Layout, prepare
from .lock import exclusive_lock
from .protocol import ChunkStore
from .receipts import ReceiptTable
from .recovery import Recovery
from .segment_store import DiskThreads, OnQuarantine, SegmentStore
from .segments import SegmentFiles, Tail
from .tables import KeyValue, RecordTable
from .writer import Limits, Writer

SEGMENT_BYTES = 256 * 1024 * 1024
LONGEST_LEASE_SECS = 90 * 86_400.0
"""The longest promise a peer may have been given."""
_HOLDS_LOST = ("store", b"holds lost")


@dataclass(frozen=True, slots=True)
class Store:
    """What a node keeps on this disk."""

    chunks: ChunkStore
    records: RecordTable
    holds: HoldTable
    receipts: ReceiptTable
    rebuilt: bool
    """The index was lost or damaged, and has been made anew from the segments."""
    _database: Database
    _gate: Gate
    _limiter: trio.CapacityLimiter

    def key_value(self, namespace: str) -> KeyValue:
        """The persistent table of that name; it exists as soon as something is put."""
        return KeyValue(self._database, self._gate, self._limiter, namespace)


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    quota: int | None,
    min_free: int,
    segment_bytes: int = SEGMENT_BYTES,
    lock_path: Path | None = None,
    on_quarantine: OnQuarantine | None = None,
    files: Files | None = None,
) -> AsyncIterator[Store]:
    """The store in directory `path`, made if need be; recovered if it was not closed in order.

    On leaving, operations in progress finish; later ones raise StoreError.

    Args:
        quota: bytes the segment files may occupy; None: no bound but the disk.
        min_free: bytes to leave free on the disk.
        segment_bytes: a segment at least this large is followed by a new one.
        lock_path: the lock file; default `path`/lock.
        on_quarantine: told about every chunk found rotten; must neither raise nor block.
        files: the calls made on segment files, for tests that make disks fail.

    Raises:
        StoreLockedError: another process owns the directory.
        StoreError: of a newer format, not ours, or the disk failed.
    """
    layout = Layout(path)
    limits = Limits(quota, min_free)
    stack = ExitStack()

    def build() -> Store:
        try:
            return _open(stack, layout, limits, segment_bytes, lock_path, on_quarantine, files)
        except OSError as error:
            raise disk_error("use the data directory", layout.root, error) from error

    gate: Gate | None = None
    try:
        with trio.CancelScope(shield=True):
            store = await trio.to_thread.run_sync(build)
        gate = store._gate
        yield store
    finally:
        with trio.CancelScope(shield=True):
            if gate is not None:
                await gate.close()
            await trio.to_thread.run_sync(stack.close)


def _open(
    stack: ExitStack,
    layout: Layout,
    limits: Limits,
    segment_bytes: int,
    lock_path: Path | None,
    on_quarantine: OnQuarantine | None,
    files: Files | None,
) -> Store:
    files = files or OsFiles()
    threads = DiskThreads()
    gate = Gate(f"The store at {layout.root}")
    layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    stack.enter_context(exclusive_lock(lock_path or layout.root / "lock", layout.root))
    store_id = prepare(layout, files)
    database = open_database(layout.index, store_id)
    stack.callback(database.close)
    index = Index(database)
    segment_files = SegmentFiles(layout, files)
    stack.callback(segment_files.close)
    tail = Tail(layout, files, segment_files, store_id, segment_bytes)
    recovery = Recovery(layout, files, segment_files, index, store_id, segment_bytes)
    _note_lost_holds(database)
    ledger = recovery.run(tail)
    rebuilt = _replace_lost_holds(database)
    writer = Writer(layout, files, segment_files, tail, index, ledger, limits, store_id)
    chunks = SegmentStore(
        layout=layout,
        segment_files=segment_files,
        index=index,
        writer=writer,
        ledger=ledger,
        limits=limits,
        gate=gate,
        threads=threads,
        on_quarantine=on_quarantine,
    )
    records = RecordTable(database, gate, threads.reads)
    holds = HoldTable(database, gate, threads.reads)
    receipts = ReceiptTable(database, gate, threads.reads)
    return Store(chunks, records, holds, receipts, rebuilt, database, gate, threads.reads)


def _note_lost_holds(database: Database) -> None:
    """An index without chunks is new, or about to be rebuilt and has lost its holds. Written down
    before the first chunk is found again, so that a rebuild cut short is remembered as one."""
    with database.write(durable=True) as db:
        db.execute(
            "INSERT OR REPLACE INTO key_values SELECT ?, ?, x'01'"
            " WHERE NOT EXISTS (SELECT 1 FROM chunks)",
            _HOLDS_LOST,
        )


def _replace_lost_holds(database: Database) -> bool:
    """After an index was rebuilt nobody knows what was promised to whom. Every chunk found is held
    for nobody in particular, so that an owner who takes back his own promise cannot take away a
    chunk that was promised to another one too. Returns whether there was anything to do."""
    until = time.time() + LONGEST_LEASE_SECS
    with database.write(durable=True) as db:
        found = db.execute(
            "INSERT OR IGNORE INTO holds SELECT digest, ?, ?, ? FROM chunks WHERE EXISTS"
            " (SELECT 1 FROM key_values WHERE namespace = ? AND key = ?)",
            (UNKNOWN_OWNER, NO_ROOT, until, *_HOLDS_LOST),
        )
        db.execute("DELETE FROM key_values WHERE namespace = ? AND key = ?", _HOLDS_LOST)
    return found.rowcount > 0
