"""Where every chunk lies: the index of the segments, in SQLite.

All methods block; callers run them in worker threads. Invariant: a row is written only after the
bytes it points to are durable, so the index may know less than the segments, never more.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .database import Database
from .frames import HEADER_BYTES, Kind
from .protocol import Digest

_IN_CLAUSE = 500
"""Digests per SELECT: 5 us a digest instead of 12 for single lookups."""

_FRAME_END = "offset + 48 + ((length + 7) / 8) * 8"


@dataclass(frozen=True, slots=True)
class Location:
    """A chunk's entry; `offset` is where its header begins, `length` counts the payload."""

    segment: int
    offset: int
    length: int

    @property
    def payload(self) -> int:
        return self.offset + HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Change:
    """What one entry of a segment does to the index; a reason turns deletion into quarantine."""

    kind: Kind
    digest: Digest
    offset: int
    length: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    id: int
    indexed_end: int
    tombstones: int
    """How many of its tombstones void an entry of another segment."""
    dead: bool
    """Nothing in it is needed; the file is, or should be, gone."""
    closed: bool
    """It has damage and must not be appended to: a seal would vouch for the damage as well."""


class Index:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- chunks ---------------------------------------------------------------------------

    def locate(self, digest: Digest) -> Location | None:
        with self._database.read() as db:
            return _locate(db, digest)

    def locate_many(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        """Locations of those of `digests` that are held."""
        found: dict[Digest, Location] = {}
        with self._database.read() as db:
            for start in range(0, len(digests), _IN_CLAUSE):
                some = digests[start : start + _IN_CLAUSE]
                marks = ",".join("?" * len(some))
                rows = db.execute(
                    f"SELECT digest, segment, offset, length FROM chunks WHERE digest IN ({marks})",
                    some,
                )
                found.update((digest, Location(*where)) for digest, *where in rows)
        return found

    def page(self, after: Digest, count: int) -> list[tuple[Digest, int]]:
        """The next `count` (digest, size) in digest order."""
        with self._database.read() as db:
            return db.execute(
                "SELECT digest, length FROM chunks WHERE digest > ? ORDER BY digest LIMIT ?",
                (after, count),
            ).fetchall()

    def apply(self, segment: int, end: int, changes: Iterable[Change]) -> int:
        """In one transaction: follow the entries of `segment` up to its offset `end`.

        Returns how many tombstones among them void an entry of another segment.
        """
        with self._database.write() as db:
            foreign = 0
            for change in changes:
                if change.kind == Kind.CHUNK:
                    db.execute(
                        "INSERT OR REPLACE INTO chunks VALUES (?,?,?,?)",
                        (change.digest, segment, change.offset, change.length),
                    )
                elif change.kind == Kind.TOMBSTONE:
                    foreign += _bury(db, change, segment)
            db.execute(
                "INSERT INTO segments VALUES (?, ?, ?, 0, 0) ON CONFLICT (id) DO UPDATE SET"
                " indexed_end = excluded.indexed_end,"
                " tombstones = tombstones + excluded.tombstones",
                (segment, end, foreign),
            )
        return foreign

    def quarantine(self, digest: Digest, where: Location, reason: str) -> bool:
        """Take the chunk out of the index without a tombstone (when none can be written).

        Returns whether it was there, at `where`.
        """
        with self._database.write() as db:
            if _locate(db, digest) != where:
                return False
            _quarantine(db, digest, where, reason)
            return True

    def quarantined(self) -> list[tuple[Digest, Location, str]]:
        """What was found rotten and not stored again since: digest, where, why."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT q.digest, q.segment, q.offset, q.length, q.reason FROM quarantine q"
                " LEFT JOIN chunks c ON c.digest = q.digest WHERE c.digest IS NULL"
            ).fetchall()
        return [(digest, Location(*where), reason) for digest, *where, reason in rows]

    # --- segments -------------------------------------------------------------------------

    def segments(self) -> dict[int, SegmentRow]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT id, indexed_end, tombstones, dead, closed FROM segments ORDER BY id"
            )
            return {
                number: SegmentRow(number, end, tombstones, bool(dead), bool(closed))
                for number, end, tombstones, dead, closed in rows
            }

    def populations(self) -> dict[int, int]:
        """Chunks that live in each segment. Reads all rows: for the opening of a store only."""
        with self._database.read() as db:
            return dict(db.execute("SELECT segment, count(*) FROM chunks GROUP BY segment"))

    def mark_dead(self, segment: int) -> None:
        """Durably: this segment's file is about to go (the row stays, its number is used up)."""
        with self._database.write(durable=True) as db:
            db.execute(
                "INSERT INTO segments VALUES (?, ?, 0, 1, 1) ON CONFLICT (id) DO UPDATE SET"
                " dead = 1",
                (segment, HEADER_BYTES),
            )

    def close_segment(self, segment: int) -> None:
        """Durably: this segment must not be appended to."""
        with self._database.write(durable=True) as db:
            db.execute(
                "INSERT INTO segments VALUES (?, ?, 0, 0, 1) ON CONFLICT (id) DO UPDATE SET"
                " closed = 1",
                (segment, HEADER_BYTES),
            )

    def forget_beyond(self, segment: int, end: int) -> int:
        """Drop rows whose entry does not end by `end`, in a segment found shorter than indexed."""
        with self._database.write(durable=True) as db:
            lost = db.execute(
                f"DELETE FROM chunks WHERE segment = ? AND {_FRAME_END} > ?", (segment, end)
            ).rowcount
            db.execute("UPDATE segments SET indexed_end = ? WHERE id = ?", (end, segment))
            return lost


def _locate(db: sqlite3.Connection, digest: Digest) -> Location | None:
    row = db.execute(
        "SELECT segment, offset, length FROM chunks WHERE digest = ?", (digest,)
    ).fetchone()
    return Location(*row) if row else None


def _bury(db: sqlite3.Connection, change: Change, segment: int) -> bool:
    """Remove the chunk; whether its tombstone is needed by another segment than its own."""
    where = _locate(db, change.digest)
    if where is None:
        return False
    earlier = db.execute(
        "SELECT segment FROM quarantine WHERE digest = ?", (change.digest,)
    ).fetchone()
    if change.reason is None:
        db.execute("DELETE FROM chunks WHERE digest = ?", (change.digest,))
    else:
        _quarantine(db, change.digest, where, change.reason)
    # An earlier, quarantined entry may have no tombstone of its own.
    return where.segment != segment or (earlier is not None and earlier[0] != segment)


def _quarantine(db: sqlite3.Connection, digest: Digest, where: Location, reason: str) -> None:
    db.execute("DELETE FROM chunks WHERE digest = ?", (digest,))
    db.execute(
        "INSERT OR REPLACE INTO quarantine VALUES (?,?,?,?,?,?)",
        (digest, where.segment, where.offset, where.length, reason, time.time()),
    )
