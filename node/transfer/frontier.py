"""The digest of a file that is written out of order."""

from __future__ import annotations

import os
import threading

from blake3 import blake3

from ...errors import DestinationError
from .plan import Write

_REREAD_BYTES = 1 << 20


class Frontier:
    """Hashes slices in file order, as soon as all before them are written.

    The slice that is next is hashed from memory, others are read back when their turn comes (from
    the page cache: they were written a moment ago). Safe for many threads at once.
    """

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self._next = 0
        self._offset = 0
        self._written: dict[int, int] = {}
        self._hasher = blake3()
        self._busy = threading.Lock()

    def add(self, fd: int, write: Write, data: memoryview) -> bytes | None:
        """Note a written slice; returns the whole file's digest to exactly one caller."""
        self._written[write.piece] = write.length
        # Whoever finds the lock taken leaves: the holder looks again after letting go of it.
        while self._next in self._written and self._busy.acquire(blocking=False):
            try:
                if self._advance(fd, write, data):
                    return self._hasher.digest()
            finally:
                self._busy.release()
        return None

    def _advance(self, fd: int, write: Write, data: memoryview) -> bool:
        before = self._next
        while (length := self._written.pop(self._next, None)) is not None:
            if self._next == write.piece:
                self._hasher.update(data)
            else:
                self._hash_back(fd, length)
            self._offset += length
            self._next += 1
        return before < self._next == self._pieces

    def _hash_back(self, fd: int, length: int) -> None:
        at, end = self._offset, self._offset + length
        while at < end:
            part = os.pread(fd, min(_REREAD_BYTES, end - at), at)
            if not part:
                raise DestinationError("A file being written was cut short by somebody else.")
            self._hasher.update(part)
            at += len(part)
