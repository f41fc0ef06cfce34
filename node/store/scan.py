"""Walking a segment file from entry to entry, over damage if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from .frames import (
    ALIGNMENT,
    ENTRY_MAGIC,
    HEADER_BYTES,
    EntryHeader,
    Kind,
    decode_entry,
    encode_seal,
    frame_bytes,
)
from .protocol import Digest

_WINDOW_BYTES = 1 << 20

Read = Callable[[int, int], bytes]
"""(offset, length) -> bytes of one segment file, fewer only at its end."""


@dataclass(frozen=True, slots=True)
class Found:
    """A sound entry. `offset` is where its header begins."""

    kind: Kind
    digest: Digest
    offset: int
    length: int


def is_sealed(read: Read, size: int, seed: int) -> bool:
    """Whether the segment was closed in order: all of it was durable at that moment."""
    return size >= 2 * HEADER_BYTES and read(size - HEADER_BYTES, HEADER_BYTES) == encode_seal(seed)


class Scan:
    """Iterate once over the sound entries of a segment between `start` and `size`.

    An entry is sound when its header's CRC fits, all of it lies within the file and, with
    `verify`, its payload has the digest it claims. What is not sound is stepped over: pages of an
    unfinished write reach the disk in any order, so good entries may follow torn ones.
    """

    def __init__(self, read: Read, start: int, size: int, seed: int, *, verify: bool) -> None:
        self._read = read
        self._start = start
        self._size = size
        self._seed = seed
        self._verify = verify
        self.end = start
        """After the last sound entry seen so far."""
        self.sealed = False
        self.sound_bytes = 0

    @property
    def damaged_bytes(self) -> int:
        """How much of what lies before `end` is no sound entry."""
        return self.end - self._start - self.sound_bytes

    def __iter__(self) -> Iterator[Found]:
        at: int | None = self._start
        while at is not None and at < self._size:
            header = decode_entry(self._read(at, HEADER_BYTES), self._seed)
            if header is None or not self._is_sound(header, at):
                # Not by the length the header claims: what follows may begin inside it.
                at = self._next_header(at + ALIGNMENT)
                continue
            after = at + frame_bytes(header.length)
            self.end = after
            self.sound_bytes += after - at
            if header.kind == Kind.SEAL:
                self.sealed = True
            else:
                yield Found(header.kind, header.digest, at, header.length)
            at = after

    def _is_sound(self, header: EntryHeader, at: int) -> bool:
        if at + frame_bytes(header.length) > self._size:
            return False
        if not self._verify or header.kind != Kind.CHUNK:
            return True
        payload = self._read(at + HEADER_BYTES, header.length)
        return blake3(payload).digest() == header.digest

    def _next_header(self, at: int) -> int | None:
        """The next place at or after `at` that holds a header of ours."""
        while at + HEADER_BYTES <= self._size:
            window = self._read(at, _WINDOW_BYTES + HEADER_BYTES)
            hit = window.find(ENTRY_MAGIC)
            while hit != -1 and hit < _WINDOW_BYTES:
                candidate = window[hit : hit + HEADER_BYTES]
                if hit % ALIGNMENT == 0 and decode_entry(candidate, self._seed) is not None:
                    return at + hit
                hit = window.find(ENTRY_MAGIC, hit + 1)
            at += _WINDOW_BYTES
        return None
