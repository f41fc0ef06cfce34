"""Memory for chunks that is used again and again.

New pages for every chunk have to be cleared, and the interpreter's lock is held meanwhile.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

_KEPT_FROM = 64 * 1024
"""The allocator has smaller pieces at hand."""
_KEPT_BYTES = 32 << 20


def untouched_memory(size: int) -> memoryview:
    """Memory that is used from the page on that is first written to. What small files leave of a
    window costs nothing so, and nothing is set to zero before it is overwritten."""
    return memoryview(mmap.mmap(-1, size))


class Memory:
    """Buffers of one size, as many as are in use at a time; 32 MiB of them, or one, are kept. For
    many threads at once.

    Take them late and give them back soon: what was used once is filled to the largest chunk.

    Args:
        size: of each, in bytes; the most that is ever asked for.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[memoryview] = []

    def take(self, size: int) -> memoryview:
        """`size` bytes. Whoever never gives them back only costs a later one new pages."""
        if size < _KEPT_FROM:
            return memoryview(bytearray(size))
        try:
            whole = self._free.pop()
        except IndexError:
            whole = untouched_memory(self._size)
        return whole[:size]

    def give_back(self, memory: memoryview) -> None:
        """What `take` gave; nobody may use it any more."""
        kept = (len(self._free) + 1) * self._size
        if len(memory) >= _KEPT_FROM and (kept <= _KEPT_BYTES or not self._free):
            self._free.append(memoryview(memory.obj))

    @contextmanager
    def lent(self, size: int) -> Iterator[memoryview]:
        """`size` bytes for the length of the block."""
        memory = self.take(size)
        try:
            yield memory
        finally:
            self.give_back(memory)
