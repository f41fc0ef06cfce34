"""Chunk records on disk: a log of changes per publisher, thousands of records to a row.

A row for each record would cost a node more than all else it does for an announcement. So what
changed within one flush interval becomes one row per publisher and 4,096 digests: the records as
they are now, and the digests that are gone. Later rows win, and expire with the last of their
records. Rows of a publisher are written anew, and the old ones deleted, when they hold more than
twice what is alive: so the log stays in proportion to what it stands for, whatever its publisher
does, and a change is written anew once on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct

import trio

from .backend import Row, RowKind, RowWriter
from .keyspace import DIGEST_BYTES
from .peer_id import PeerId
from .records_wire import MAX_ZONE_CHARS

_BATCH = 4096
_SLACK = 1024
_NUMBER = Struct(">Q")
_HEAD = Struct(">HI")  # bytes of the zone, records
_NUMBER_BYTES = 8


@dataclass(slots=True)
class Kept:
    """What is kept for one publisher: digest -> size and end in one number (`records.packed`)."""

    zone: str = ""
    chunks: dict[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Log:
    """Rows of one publisher: number -> (end, changes in it). `changed` is not written yet."""

    rows: dict[int, tuple[float, int]] = field(default_factory=dict)
    logged: int = 0
    changed: dict[bytes, None] = field(default_factory=dict)


class RecordLog:
    """What became of the records of each publisher. `kept` tells how they are now."""

    def __init__(
        self, rows: RowWriter, kept: Callable[[PeerId], tuple[str, Mapping[bytes, int]]]
    ) -> None:
        self._rows = rows
        self._kept = kept
        self._logs: dict[PeerId, _Log] = {}
        self._next = 0

    def changed(self, publisher: PeerId, digests: Iterable[bytes]) -> None:
        """Records of `publisher` came, changed or were taken back; written with the next flush."""
        self._log_of(publisher).changed.update(dict.fromkeys(digests))
        self._rows.before_flush(self._write)

    def expire(self, now: float) -> None:
        """Drop rows of which nothing is alive any more."""
        for publisher, log in list(self._logs.items()):
            for number in [number for number, (end, _) in log.rows.items() if end <= now]:
                self._drop(publisher, log, number)
            if not log.rows and not log.changed:
                del self._logs[publisher]

    def restore(self, rows: Sequence[Row], now: float) -> dict[PeerId, Kept]:
        """What an earlier run kept, without what expired; rows that make no sense are dropped."""
        out: dict[PeerId, Kept] = {}
        for kind, key, publisher, value, expires in sorted(rows):
            read = _decode(value) if len(key) == _NUMBER.size else None
            if read is None or expires <= now:
                self._rows.delete(RowKind(kind), key, publisher)
                continue
            zone, records, gone = read
            (number,) = _NUMBER.unpack(key)
            self._next = max(self._next, number + 1)
            peer = PeerId(publisher)
            self._noted(self._log_of(peer), number, expires, len(records) + len(gone))
            kept = out.setdefault(peer, Kept())
            kept.zone = zone
            kept.chunks.update(records)
            for digest in gone:
                kept.chunks.pop(digest, None)
        for kept in out.values():
            kept.chunks = {d: n for d, n in kept.chunks.items() if n >> 32 > now}
        return out

    def _log_of(self, publisher: PeerId) -> _Log:
        log = self._logs.get(publisher)
        if log is None:
            log = self._logs[publisher] = _Log()
        return log

    async def _write(self) -> None:
        """Make rows of what has changed; a slice at a time, as it may be much."""
        for publisher, log in list(self._logs.items()):
            while log.changed:
                digests = list(log.changed)[:_BATCH]
                self._append(publisher, log, digests)
                for digest in digests:
                    del log.changed[digest]
                await trio.lowlevel.checkpoint()
            if log.logged > 2 * len(self._kept(publisher)[1]) + _SLACK:
                await self._write_anew(publisher, log)

    async def _write_anew(self, publisher: PeerId, log: _Log) -> None:
        old = list(log.rows)
        digests = list(self._kept(publisher)[1])
        for start in range(0, len(digests), _BATCH):
            # Some may be gone by the time, and are noted as gone once more.
            self._append(publisher, log, digests[start : start + _BATCH])
            await trio.lowlevel.checkpoint()
        # After the new rows: what is cut short here leaves a row too many, not one too few.
        for number in old:
            if number in log.rows:
                self._drop(publisher, log, number)

    def _append(self, publisher: PeerId, log: _Log, digests: Sequence[bytes]) -> None:
        zone, chunks = self._kept(publisher)
        there = [digest for digest in digests if digest in chunks]
        gone = [] if len(there) == len(digests) else [d for d in digests if d not in chunks]
        numbers = [chunks[digest] for digest in there]
        ends = [float(max(numbers) >> 32)] if numbers else []
        if gone:
            # They must be remembered as gone for as long as an older row says otherwise.
            ends += [end for end, _ in log.rows.values()]
        if not ends:
            return
        word = zone.encode()
        value = b"".join(
            (
                _HEAD.pack(len(word), len(there)),
                word,
                *there,
                Struct(f">{len(numbers)}Q").pack(*numbers),
                *gone,
            )
        )
        number, self._next = self._next, self._next + 1
        self._noted(log, number, max(ends), len(digests))
        self._rows.save(RowKind.CHUNKS, _NUMBER.pack(number), publisher, value, max(ends))

    def _noted(self, log: _Log, number: int, end: float, changes: int) -> None:
        log.rows[number] = end, changes
        log.logged += changes

    def _drop(self, publisher: PeerId, log: _Log, number: int) -> None:
        log.logged -= log.rows.pop(number)[1]
        self._rows.delete(RowKind.CHUNKS, _NUMBER.pack(number), publisher)


def _decode(value: bytes) -> tuple[str, dict[bytes, int], list[bytes]] | None:
    """(zone, records, digests gone) of a row; None when it makes no sense."""
    if len(value) < _HEAD.size:
        return None
    word, count = _HEAD.unpack_from(value)
    first = _HEAD.size + word
    numbers = first + count * DIGEST_BYTES
    rest = numbers + count * _NUMBER_BYTES
    if len(value) < rest or (len(value) - rest) % DIGEST_BYTES:
        return None
    zone = value[_HEAD.size : first].decode("utf-8", "replace")[:MAX_ZONE_CHARS]
    digests = _digests(value[first:numbers])
    packed = Struct(f">{count}Q").unpack_from(value, numbers)
    return zone, dict(zip(digests, packed, strict=True)), _digests(value[rest:])


def _digests(column: bytes) -> list[bytes]:
    return [column[at : at + DIGEST_BYTES] for at in range(0, len(column), DIGEST_BYTES)]
