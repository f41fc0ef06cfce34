"""Segment files open for reading, and the one at the tail that is appended to.

All methods block; reads come from many threads at once, appends from one at a time.
"""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from .files import Files, disk_error
from .frames import HEADER_BYTES, encode_seal, encode_segment_header, entry_seed
from .layout import Layout
from .protocol import Buffer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("meshnode.store")

_IOV_MAX = 1024
_OPEN_FILES = 64


@dataclass(slots=True)
class _OpenFile:
    fd: int
    users: int = 0
    doomed: bool = False


class SegmentFiles:
    """Descriptors of segments, kept open for the most recently used ones.

    A descriptor in use is never closed: its number could go to another file under the reader.
    """

    def __init__(self, layout: Layout, files: Files) -> None:
        self._layout = layout
        self._files = files
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Bytes of a segment file, fewer only at its end. Raises `OSError` as the system does."""
        with self.borrow(segment) as fd:
            return self._files.read(fd, length, offset)

    @contextmanager
    def borrow(self, segment: int) -> Iterator[int]:
        entry = self._acquire(segment)
        try:
            yield entry.fd
        finally:
            with self._lock:
                entry.users -= 1
                if entry.doomed and entry.users == 0:
                    self._files.close(entry.fd)

    def forget(self, segment: int) -> None:
        """Close the descriptor, now or when its last reader is done."""
        with self._lock:
            entry = self._open.pop(segment, None)
            if entry is not None:
                self._doom(entry)

    def close(self) -> None:
        with self._lock:
            for entry in self._open.values():
                self._doom(entry)
            self._open.clear()

    def _acquire(self, segment: int) -> _OpenFile:
        with self._lock:
            entry = self._open.get(segment)
            if entry is None:
                entry = _OpenFile(self._files.open(self._layout.segment(segment)))
                self._open[segment] = entry
                if len(self._open) > _OPEN_FILES:
                    self._doom(self._open.popitem(last=False)[1])
            else:
                self._open.move_to_end(segment)
            entry.users += 1
            return entry

    def _doom(self, entry: _OpenFile) -> None:
        entry.doomed = True
        if entry.users == 0:
            self._files.close(entry.fd)


class Tail:
    """The segment that grows. Invariant: nothing after `end` was ever acknowledged."""

    def __init__(
        self,
        layout: Layout,
        files: Files,
        segment_files: SegmentFiles,
        store_id: bytes,
        segment_bytes: int,
    ) -> None:
        self._layout = layout
        self._files = files
        self._segment_files = segment_files
        self._store_id = store_id
        self._segment_bytes = segment_bytes
        self._active: int | None = None
        self._next = 1
        self._end = HEADER_BYTES

    def resume(self, active: int | None, end: int, following: int) -> None:
        """Go on at `end` of segment `active`; new segments count from `following`."""
        self._active, self._end, self._next = active, end, following

    @property
    def segment(self) -> int:
        """The segment the next append goes to (it need not exist yet)."""
        return self._next if self._active is None else self._active

    @property
    def end(self) -> int:
        """Where in that segment the next entry begins."""
        return self._end

    def has_room(self, planned: int, size: int) -> bool:
        """Whether `size` bytes fit after `planned` others; an empty segment takes any entry."""
        end = self._end + planned
        return end + size <= self._segment_bytes or end == HEADER_BYTES

    def append(self, buffers: Sequence[Buffer], size: int) -> None:
        """Write `buffers` (`size` bytes in all) at `end` and return when they are durable.

        Raises:
            QuotaError, StoreError: nothing was appended; a later append is sound.
        """
        if self._active is None:
            self._create()
        segment, start = self.segment, self._end
        path = self._layout.segment(segment)
        try:
            with self._segment_files.borrow(segment) as fd:
                self._write_all(fd, buffers, start)
        except OSError as error:
            self.undo(start, size)
            raise disk_error("write to", path, error) from error
        try:
            with self._segment_files.borrow(segment) as fd:
                self._files.sync(fd)
        except OSError as error:
            self.undo(start, size)
            # After a failed sync the system may take lost pages for clean, and the next sync for
            # a success (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
            self.leave()
            raise disk_error("sync", path, error) from error
        self._end = start + size

    def undo(self, start: int, size: int) -> int:
        """Cut what was written after `start`; returns how long the file is then at most."""
        segment = self.segment
        try:
            with self._segment_files.borrow(segment) as fd:
                self._files.truncate(fd, start)
        except OSError as error:
            log.warning("store_segment_left", segment=segment, end=start, reason=str(error))
            self.leave()
            return start + size
        self._end = start
        return start

    def roll(self) -> None:
        """Seal the full segment; the next append begins another.

        All of it has been synced, which is what the seal says; should the seal itself be lost,
        a rebuild of the index verifies the segment's chunks instead of trusting it.
        """
        if self._active is None:
            return
        try:
            with self._segment_files.borrow(self._active) as fd:
                seal = encode_seal(entry_seed(self._store_id, self._active))
                self._write_all(fd, [seal], self._end)
        except OSError as error:
            log.warning("store_segment_unsealed", segment=self._active, reason=str(error))
        self.leave()

    def leave(self) -> None:
        """Never append to this segment again."""
        self._active = None
        self._end = HEADER_BYTES

    def _create(self) -> None:
        number = self._next
        self._next += 1
        path = self._layout.segment(number)
        try:
            fd = self._files.open(path, create=True)
            try:
                self._write_all(fd, [encode_segment_header(self._store_id, number)], 0)
                self._files.sync(fd)
            finally:
                self._files.close(fd)
            self._files.sync_directory(self._layout.segments)
        except OSError as error:
            # What remains of the file holds no entry; opening the store removes it.
            raise disk_error("create the segment file", path, error) from error
        self._active, self._end = number, HEADER_BYTES

    def _write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        first = 0
        while first < len(views):
            written = self._files.write(fd, views[first : first + _IOV_MAX], offset)
            if written <= 0:
                raise OSError(errno.EIO, "the disk took nothing")
            offset += written
            while first < len(views) and written >= len(views[first]):
                written -= len(views[first])
                first += 1
            if written:
                views[first] = views[first][written:]
