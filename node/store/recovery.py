"""Opening a store: bring the index to what the segments say, and find where to go on writing.

Commits are strictly one after the other (segment sync, then index transaction), and SQLite may
lose the last transactions in a power cut, but only the last ones. Hence:

- the newest segment the index knows, and any after it, may hold acknowledged entries that the
  index has not seen: they are scanned, verified and indexed in order;
- entries beyond the indexed end of an older segment were never acknowledged (a failed write that
  could not be cut off) and are ignored;
- an empty index is the same case with everything unseen: all is scanned. Only segments without a
  seal need their payloads verified.

Everything here blocks and runs once, before anyone else sees the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from .files import Files, disk_error
from .frames import HEADER_BYTES, decode_segment_header, entry_seed
from .index import Change, Index, SegmentRow
from .layout import Layout
from .ledger import Ledger
from .scan import Read, Scan, is_sealed
from .segments import SegmentFiles, Tail

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("meshnode.store")

_CHANGES_PER_COMMIT = 10_000
_MAX_TORN_BYTES = 1 << 30
"""More than any one commit writes: beyond that it is damage, to be kept for whoever examines it."""


@dataclass(slots=True)
class _Segment:
    """What was found out about one segment file."""

    id: int
    end: int
    """After its last sound entry."""
    usable: bool = False
    """Whether it may be appended to."""


class Recovery:
    def __init__(
        self,
        layout: Layout,
        files: Files,
        segment_files: SegmentFiles,
        index: Index,
        store_id: bytes,
        segment_bytes: int,
    ) -> None:
        self._layout = layout
        self._files = files
        self._segment_files = segment_files
        self._index = index
        self._store_id = store_id
        self._segment_bytes = segment_bytes

    def run(self, tail: Tail) -> Ledger:
        """Recover, set `tail` to where writing goes on, and take stock.

        Raises:
            StoreError: a segment cannot be read; nothing was given up.
        """
        known = self._index.segments()
        sizes = self._remove_dead(known, self._layout.segment_sizes())
        self._give_up_missing(known, sizes)
        newest_indexed = max(known, default=0)
        if sizes and not known:
            log.warning("store_index_rebuilding", path=str(self._layout.root), segments=len(sizes))
        last: _Segment | None = None
        for number, size in list(sizes.items()):
            path = self._layout.segment(number)
            try:
                last = self._recover(number, size, known.get(number), newest_indexed)
            except OSError as error:
                raise disk_error("read", path, error) from error
            sizes[number] = self._layout.segment_size(number)
            if not sizes[number]:
                del sizes[number]
        following = max([*known, *sizes, *([last.id] if last else [])], default=0) + 1
        if last is not None and last.usable and last.end < self._segment_bytes:
            tail.resume(last.id, last.end, following)
        else:
            tail.resume(None, HEADER_BYTES, following)
        rows = self._index.segments()
        tombstones = {number: rows[number].tombstones for number in sizes if number in rows}
        return Ledger(sizes, self._index.populations(), tombstones)

    # --- files and rows that do not match -------------------------------------------------

    def _remove_dead(self, known: dict[int, SegmentRow], sizes: dict[int, int]) -> dict[int, int]:
        """Finish removing segments that were on their way out; returns the others."""
        for number in [number for number in sizes if number in known and known[number].dead]:
            self._unlink(self._layout.segment(number))
            del sizes[number]
        return sizes

    def _give_up_missing(self, known: dict[int, SegmentRow], sizes: dict[int, int]) -> None:
        for row in known.values():
            if row.dead or row.id in sizes:
                continue
            lost = self._index.forget_beyond(row.id, 0)
            self._index.mark_dead(row.id)
            log.error(
                "store_segment_missing", path=str(self._layout.segment(row.id)), chunks_lost=lost
            )

    def _unlink(self, path: Path) -> None:
        try:
            self._files.unlink(path)
            self._files.sync_directory(self._layout.segments)
        except OSError as error:
            raise disk_error("remove", path, error) from error

    # --- one segment ----------------------------------------------------------------------

    def _recover(
        self, number: int, size: int, row: SegmentRow | None, newest_indexed: int
    ) -> _Segment:
        indexed_end = HEADER_BYTES if row is None else row.indexed_end
        if size <= HEADER_BYTES and row is None:
            # Made, but nothing ever written to it: a crash or a full disk came between.
            self._unlink(self._layout.segment(number))
            return _Segment(number, HEADER_BYTES)
        if size < indexed_end:
            return self._shortened(number, size)
        if number < newest_indexed:
            if row is None:
                log.warning("store_segment_unknown", path=str(self._layout.segment(number)))
            return _Segment(number, size)
        closed = row is not None and row.closed
        return self._follow(number, indexed_end, size, closed=closed)

    def _follow(self, number: int, start: int, size: int, *, closed: bool) -> _Segment:
        """Index what lies between `start` and the end of the file, and drop what is torn."""
        header_fits = self._header_fits(number)
        seed = entry_seed(self._store_id, number)
        read = self._reader(number)
        if start < size:
            # What a killed process left may be in the page cache only; once indexed, it counts as
            # durable.
            self._sync(number)
        verify = not is_sealed(read, size, seed)
        scan = Scan(read, start, size, seed, verify=verify)
        changes: list[Change] = []
        count = 0
        for found in scan:
            changes.append(Change(found.kind, found.digest, found.offset, found.length))
            count += 1
            if len(changes) == _CHANGES_PER_COMMIT:
                self._index.apply(number, scan.end, changes)
                changes.clear()
        if changes or count:
            self._index.apply(number, scan.end, changes)
        torn = size - scan.end
        if count or torn or scan.damaged_bytes:
            log.warning(
                "store_tail_recovered",
                segment=number,
                entries=count,
                torn_bytes=torn,
                damaged_bytes=scan.damaged_bytes,
            )
        if closed or not header_fits or scan.damaged_bytes or torn > _MAX_TORN_BYTES:
            self._index.close_segment(number)
            return _Segment(number, scan.end)
        if torn:
            self._truncate(number, scan.end)
        return _Segment(number, scan.end, usable=not scan.sealed)

    def _shortened(self, number: int, size: int) -> _Segment:
        """The file ends before what the index knows: somebody, or the disk, cut it."""
        seed = entry_seed(self._store_id, number)
        scan = Scan(self._reader(number), HEADER_BYTES, size, seed, verify=False)
        for _ in scan:
            pass
        lost = self._index.forget_beyond(number, scan.end)
        log.error(
            "store_segment_shortened",
            path=str(self._layout.segment(number)),
            size=size,
            chunks_lost=lost,
        )
        self._index.close_segment(number)
        return _Segment(number, scan.end)

    def _reader(self, number: int) -> Read:
        def read(offset: int, length: int) -> bytes:
            return self._segment_files.read(number, offset, length)

        return read

    def _header_fits(self, number: int) -> bool:
        raw = self._segment_files.read(number, 0, HEADER_BYTES)
        if decode_segment_header(raw) == (self._store_id, number):
            return True
        log.warning("store_segment_header_damaged", path=str(self._layout.segment(number)))
        return False

    def _truncate(self, number: int, end: int) -> None:
        with self._segment_files.borrow(number) as fd:
            self._files.truncate(fd, end)
            self._files.sync(fd)

    def _sync(self, number: int) -> None:
        with self._segment_files.borrow(number) as fd:
            self._files.sync(fd)
        self._files.sync_directory(self._layout.segments)
