"""What an earlier run kept for others, until it is checked again.

A hundred thousand signatures must not hold up a start: rows are checked when they are asked for,
and all of them a slice at a time. Until then they are not passed on, and count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from .backend import Row

_ROWS_AT_ONCE = 32
"""A signature takes 0.1 ms."""
_PAUSE = 0.01


class Unchecked:
    """key on the wire -> saved rows that nobody has looked at in this run."""

    def __init__(self) -> None:
        self._rows: dict[bytes, list[Row]] = {}

    def add(self, key: bytes, row: Row) -> None:
        self._rows.setdefault(key, []).append(row)

    def take(self, key: bytes) -> Sequence[Row]:
        """The rows of `key`, for their owner to check and keep, or delete; they are gone here."""
        return self._rows.pop(key, ())

    async def check_all(self, recall: Callable[[bytes], None]) -> None:
        """Call `recall` with every key, which is to take its rows; others have their turns."""
        while self._rows:
            room = _ROWS_AT_ONCE
            while room > 0 and self._rows:
                key, rows = next(iter(self._rows.items()))
                room -= len(rows)
                recall(key)
            await trio.sleep(_PAUSE)
