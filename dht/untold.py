"""Our own keys that too few peers have been told of, and since when.

An announcement is noted down before it begins and struck off key by key as peers acknowledge it, so
that what failed is tried again soon, and what a crash cut short is told after the restart. Keys are
saved in batches, a row for each: a row goes when the last of its keys is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

import trio

from .backend import NEVER, Row, RowKind, RowWriter
from .keyspace import DIGEST_BYTES

_BATCH = 1024
_SINCE = Struct(">d")
_NUMBER = Struct(">Q")


@dataclass(slots=True)
class _Batch:
    """`since` is Unix time."""

    since: float
    left: dict[bytes, None]


class Untold:
    """A set of digests with memory.

    Invariant: `_batch_of[d] == n` exactly when `d in _batches[n].left`.
    """

    def __init__(self, rows: RowWriter) -> None:
        self._rows = rows
        self._batches: dict[int, _Batch] = {}
        self._batch_of: dict[bytes, int] = {}
        self._next = 0
        self._some = trio.Event()

    def __len__(self) -> int:
        return len(self._batch_of)

    def __contains__(self, digest: object) -> bool:
        return digest in self._batch_of

    def lag(self, now: float) -> float:
        """For how long the oldest key has been waiting, in seconds; 0 when there is none."""
        oldest = min((batch.since for batch in self._batches.values()), default=now)
        return max(0.0, now - oldest)

    def oldest(self, count: int, *, without: set[bytes]) -> list[bytes]:
        """Up to `count` keys, longest waiting first, none of them in `without`."""
        out: list[bytes] = []
        for batch in self._batches.values():
            out.extend(digest for digest in batch.left if digest not in without)
            if len(out) >= count:
                break
        return out[:count]

    async def wait_some(self) -> None:
        """Wait until there is a key."""
        if not self._batch_of:
            self._some = trio.Event()
        await self._some.wait()

    def add(self, digests: Iterable[bytes], now: float) -> None:
        """Note keys down; those that wait already go on waiting."""
        new = [digest for digest in dict.fromkeys(digests) if digest not in self._batch_of]
        for start in range(0, len(new), _BATCH):
            self._insert(new[start : start + _BATCH], now)
        if new:
            self._some.set()

    def told(self, digests: Iterable[bytes]) -> None:
        """Strike keys off: told, or not ours any more."""
        for digest in digests:
            number = self._batch_of.pop(digest, None)
            if number is None:
                continue
            batch = self._batches[number]
            batch.left.pop(digest, None)
            if not batch.left:
                del self._batches[number]
                self._rows.delete(RowKind.UNTOLD, _NUMBER.pack(number), b"")

    def restore(self, rows: Sequence[Row], still_ours: set[bytes]) -> None:
        """Take over what an earlier run had not told."""
        for _, key, _, value, _ in rows:
            sound = len(key) == _NUMBER.size and len(value) % DIGEST_BYTES == _SINCE.size
            if sound:
                self._next = max(self._next, _NUMBER.unpack(key)[0] + 1)
            self._rows.delete(RowKind.UNTOLD, key, b"")
        for _, _, _, value, _ in rows:
            if len(value) % DIGEST_BYTES != _SINCE.size:
                continue
            (since,) = _SINCE.unpack_from(value)
            starts = range(_SINCE.size, len(value), DIGEST_BYTES)
            digests = [value[start : start + DIGEST_BYTES] for start in starts]
            self.add([digest for digest in digests if digest in still_ours], since)

    def _insert(self, digests: Sequence[bytes], since: float) -> None:
        number, self._next = self._next, self._next + 1
        self._batches[number] = _Batch(since, dict.fromkeys(digests))
        self._batch_of.update(dict.fromkeys(digests, number))
        value = _SINCE.pack(since) + b"".join(digests)
        self._rows.save(RowKind.UNTOLD, _NUMBER.pack(number), b"", value, NEVER)
