"""The SQLite file behind the index and the small tables: connections, transactions, damage.

All methods block; callers run them in worker threads. One connection writes, guarded by a lock; a
few more read, and in WAL mode a reader never waits for the writer.

`synchronous` is NORMAL: a commit does not wait for the disk. After a power cut the last commits
may be gone (never torn, and none after a process kill); for chunks they are found again in the
segments. `write(durable=True)` waits for the disk, for what is written nowhere else.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from ...errors import QuotaError, StoreError

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("meshnode.store")

_SCHEMA_VERSION = 1
_BUSY_SECONDS = 5.0
_WRITER_CACHE_KIB = 16_384
_READER_CACHE_KIB = 2_048
_WAL_LIMIT_BYTES = 64 * 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunks (
    digest BLOB PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    length INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (
    digest BLOB PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    length INTEGER NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY, indexed_end INTEGER NOT NULL, tombstones INTEGER NOT NULL,
    dead INTEGER NOT NULL, closed INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS key_values (
    namespace TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    kind INTEGER NOT NULL, key BLOB NOT NULL, publisher BLOB NOT NULL, value BLOB NOT NULL,
    expires REAL NOT NULL, PRIMARY KEY (kind, key, publisher)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    digest BLOB NOT NULL, owner BLOB NOT NULL, root BLOB NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (digest, owner, root)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_by_root ON holds (owner, root);
CREATE TABLE IF NOT EXISTS releases (
    digest BLOB NOT NULL, peer BLOB NOT NULL, until REAL NOT NULL, PRIMARY KEY (peer, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (
    digest BLOB NOT NULL, holder BLOB NOT NULL, size INTEGER NOT NULL, issued INTEGER NOT NULL,
    until INTEGER NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (digest, holder)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_expiry ON records (expires);
CREATE TABLE IF NOT EXISTS about (store BLOB NOT NULL);
"""

_DAMAGE_CODES = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_SCHEMA,
    # A missing table or column: the file is a database, but not ours.
    sqlite3.SQLITE_ERROR,
}
_SHORT_READ = sqlite3.SQLITE_IOERR_SHORT_READ


class _Damaged(Exception):
    """The file is no database of ours, or a damaged one."""


class Database:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._writer = self._connect(_WRITER_CACHE_KIB)

    @property
    def path(self) -> Path:
        return self._path

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that change nothing."""
        with _translated(self._path):
            # list.pop and append are atomic; the pool never exceeds the threads that read at once.
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect(_READER_CACHE_KIB)
            try:
                yield connection
            finally:
                self._readers.append(connection)

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with self._write_lock, _translated(self._path):
            connection = self._writer
            if durable:
                connection.execute("PRAGMA synchronous = FULL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            finally:
                if durable:
                    connection.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        for connection in self._readers:
            connection.close()
        self._readers.clear()
        self._writer.close()

    def check(self, store_id: bytes) -> None:
        """Make the tables of an empty file; of any other, see that it is whole and ours."""
        writer = self._writer
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        (tables,) = writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        is_new = version == 0 and tables == 0
        if not is_new:
            if version != _SCHEMA_VERSION:
                raise _Damaged(f"its schema version is {version}, not {_SCHEMA_VERSION}")
            # About 0.2 s per million chunks, less than anything a damaged page would cost later.
            (verdict,) = writer.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _Damaged(str(verdict))
            if writer.execute("SELECT store FROM about").fetchall() != [(store_id,)]:
                raise _Damaged("it belongs to another store")
        # Also in a file that has tables: one made before a table was added gets it now.
        writer.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            writer.execute(statement)
        if is_new:
            writer.execute("INSERT INTO about VALUES (?)", (store_id,))
            writer.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        writer.execute("COMMIT")

    def _connect(self, cache_kib: int) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{cache_kib}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection


def open_database(path: Path, store_id: bytes) -> Database:
    """The store's database; a damaged one is set aside and an empty one takes its place.

    The caller fills the index again from the segments. What the other tables held (records,
    key/values) stays behind in the file set aside.

    Raises:
        StoreError: the file can be neither used nor set aside (permissions, disk).
    """
    try:
        return _open_checked(path, store_id)
    except _Damaged as damage:
        aside = _set_aside(path)
        log.warning("store_index_set_aside", path=str(path), kept=str(aside), reason=str(damage))
    try:
        return _open_checked(path, store_id)
    except _Damaged as damage:
        raise StoreError(
            f"Cannot make a new index at {path}: {damage}.",
            hint="Check the disk that holds the data directory.",
        ) from damage


def _open_checked(path: Path, store_id: bytes) -> Database:
    with _translated(path):
        database: Database | None = None
        try:
            database = Database(path)
            database.check(store_id)
            return database
        except BaseException as error:
            if database is not None:
                database.close()
            if isinstance(error, sqlite3.Error) and _is_damage(error):
                raise _Damaged(str(error)) from error
            raise


def _set_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{count}")
    try:
        path.rename(aside)
        # The log goes with its database, under the name SQLite would look for; a log left behind
        # would be applied to the new file.
        for suffix in ("-wal", "-shm"):
            log_file = path.with_name(path.name + suffix)
            if log_file.exists():
                log_file.rename(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise StoreError(
            f"The index {path} is damaged and cannot be moved out of the way: {error.strerror}.",
            hint="Move it away by hand; it is then rebuilt from the segment files.",
        ) from error
    return aside


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF in _DAMAGE_CODES or code == _SHORT_READ)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise QuotaError(
                f"Cannot write to the index {path}: the disk is full.",
                hint="Free some space on that disk, or delete content from the store.",
            ) from error
        hint = "Check the disk that holds the data directory and start the node again."
        if _is_damage(error):
            hint = "Stop the node and start it again: the index is then rebuilt from the segments."
        raise StoreError(f"The index {path} failed: {error}.", hint=hint) from error
