"""Turns requests into segment entries and index rows: one group commit per call.

The order is the whole point: entries are written, the segment is synced, the index follows in one
transaction, and only then is a request done. A crash in between leaves durable entries that the
index does not know (found again on opening), never rows that point to nothing.

Everything here blocks and runs in one worker thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from ...errors import MeshError, QuotaError, StoreError
from .files import Files, disk_error
from .frames import (
    EntryHeader,
    Kind,
    encode_entry,
    entry_seed,
    frame_bytes,
    padding_bytes,
)
from .index import Change, Index, Location
from .layout import Layout
from .ledger import Ledger
from .protocol import Buffer, Digest
from .segments import SegmentFiles, Tail

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("meshnode.store")


@dataclass(slots=True, eq=False)
class Request:
    """What one caller wants committed; `error` says why it was not."""

    done: bool = field(default=False, init=False)
    error: MeshError | None = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class PutRequest(Request):
    chunks: Sequence[tuple[Digest, memoryview]]


@dataclass(slots=True, eq=False)
class DeleteRequest(Request):
    digests: Sequence[Digest]
    deleted: int = field(default=0, init=False)


@dataclass(slots=True, eq=False)
class QuarantineRequest(Request):
    digest: Digest
    where: Location
    reason: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry to write; a chunk has a payload, a tombstone the entry it voids."""

    kind: Kind
    digest: Digest
    payload: memoryview | None = None
    voids: Location | None = None
    reason: str | None = None

    @property
    def frame(self) -> int:
        return frame_bytes(0 if self.payload is None else len(self.payload))


@dataclass(slots=True)
class _Run:
    """Entries that go to one segment in one write, and the requests that end with them."""

    changes: list[Change] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    size: int = 0
    voided: list[Location] = field(default_factory=list)
    completes: list[Request] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Limits:
    quota: int | None
    """Bytes all segment files may occupy; None: no bound but the disk."""
    min_free: int
    """Bytes to leave free on the disk."""


class Writer:
    def __init__(
        self,
        layout: Layout,
        files: Files,
        segment_files: SegmentFiles,
        tail: Tail,
        index: Index,
        ledger: Ledger,
        limits: Limits,
        store_id: bytes,
    ) -> None:
        self._layout = layout
        self._files = files
        self._segment_files = segment_files
        self._tail = tail
        self._index = index
        self._ledger = ledger
        self._limits = limits
        self._store_id = store_id
        self._run = _Run()
        self._moved: dict[Digest, Location | None] = {}

    def commit(self, requests: Sequence[Request]) -> None:
        """Commit all of `requests`, in order; each ends as `done` or with an `error`."""
        self._run = _Run()
        # Where this call puts or removes chunks, ahead of the index.
        self._moved = {}
        try:
            spare = self.available_bytes()
            for request in requests:
                entries = list(self._entries(request))
                added = sum(entry.frame for entry in entries if entry.payload is not None)
                if added > spare:
                    request.error = self._refusal(added, spare)
                    continue
                spare -= added
                for entry in entries:
                    self._add(entry)
                self._run.completes.append(request)
            self._flush()
        except (StoreError, QuotaError) as error:
            for request in requests:
                if not request.done and request.error is None:
                    self._fail(request, error)
        finally:
            self._run, self._moved = _Run(), {}

    def available_bytes(self) -> int:
        """What a put could still add, frames included."""
        try:
            spare = self._files.free_bytes(self._layout.segments) - self._limits.min_free
        except OSError as error:
            raise disk_error("examine", self._layout.segments, error) from error
        if self._limits.quota is not None:
            spare = min(spare, self._limits.quota - self._ledger.occupied_bytes)
        return max(0, spare)

    # --- what a request needs written -----------------------------------------------------

    def _entries(self, request: Request) -> Iterator[_Entry]:
        match request:
            case PutRequest(chunks=chunks):
                held = self._held([digest for digest, _ in chunks])
                for digest, data in chunks:
                    if digest not in held:
                        yield _Entry(Kind.CHUNK, digest, data)
            case DeleteRequest(digests=digests):
                held = self._held(digests)
                request.deleted = len(held)
                for digest, where in held.items():
                    yield _Entry(Kind.TOMBSTONE, digest, voids=where)
            case QuarantineRequest(digest=digest, where=where, reason=reason):
                # Unless it was deleted, or stored anew, since it was found rotten.
                if self._held([digest]).get(digest) == where:
                    yield _Entry(Kind.TOMBSTONE, digest, voids=where, reason=reason)
            case _:
                raise TypeError(f"unknown request {request!r}")

    def _held(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        moved = self._moved
        held = self._index.locate_many([digest for digest in digests if digest not in moved])
        for digest in digests:
            where = moved.get(digest)
            if where is not None:
                held[digest] = where
        return held

    def _add(self, entry: _Entry) -> None:
        """Append to the run, beginning a new one (in a new segment) when the segment is full."""
        if not self._tail.has_room(self._run.size, entry.frame):
            self._flush()
            self._tail.roll()
        run = self._run
        segment, offset = self._tail.segment, self._tail.end + run.size
        length = 0 if entry.payload is None else len(entry.payload)
        seed = entry_seed(self._store_id, segment)
        run.buffers.append(encode_entry(EntryHeader(entry.kind, entry.digest, length), seed))
        if entry.payload is not None:
            run.buffers.append(entry.payload)
            run.buffers.append(bytes(padding_bytes(length)))
            self._moved[entry.digest] = Location(segment, offset, length)
        else:
            self._moved[entry.digest] = None
        if entry.voids is not None:
            run.voided.append(entry.voids)
        run.changes.append(Change(entry.kind, entry.digest, offset, length, entry.reason))
        run.size += entry.frame

    # --- making it so ---------------------------------------------------------------------

    def _flush(self) -> None:
        """Write the run, sync, index, and only then call its requests done."""
        run, self._run = self._run, _Run()
        if run.changes:
            segment, start = self._append(run)
            end = start + run.size
            try:
                needed_tombstones = self._index.apply(segment, end, run.changes)
            except BaseException:
                self._ledger.resize(segment, self._tail.undo(start, run.size))
                raise
            self._account(run, segment, end, needed_tombstones)
        for request in run.completes:
            request.done = True
        if run.voided:
            self._reclaim()

    def _append(self, run: _Run) -> tuple[int, int]:
        segment, start = self._tail.segment, self._tail.end
        try:
            self._tail.append(run.buffers, run.size)
        except (StoreError, QuotaError):
            # A failed segment may keep what was written to it; count what is really there.
            self._ledger.resize(segment, self._layout.segment_size(segment))
            raise
        return segment, start

    def _account(self, run: _Run, segment: int, end: int, needed_tombstones: int) -> None:
        self._ledger.resize(segment, end)
        for change in run.changes:
            if change.kind == Kind.CHUNK:
                self._ledger.add(segment, 1)
        for where in run.voided:
            self._ledger.add(where.segment, -1)
        self._ledger.bury(segment, needed_tombstones)

    def _reclaim(self) -> None:
        """Remove the files of segments in which nothing is needed any more."""
        for segment in self._ledger.dead_segments():
            if segment == self._tail.segment:
                self._tail.leave()
            path = self._layout.segment(segment)
            try:
                # First durably in the index: were the file found again after a crash without
                # that mark, its chunks would rise from the dead.
                self._index.mark_dead(segment)
                self._segment_files.forget(segment)
                with suppress(FileNotFoundError):
                    self._files.unlink(path)
                self._files.sync_directory(self._layout.segments)
            except (OSError, StoreError, QuotaError) as error:
                # The chunks are deleted all the same; opening the store tries again.
                log.warning("store_segment_not_removed", path=str(path), reason=str(error))
                return
            self._ledger.remove(segment)

    # --- saying no ------------------------------------------------------------------------

    def _refusal(self, wanted: int, spare: int) -> QuotaError:
        quota, min_free = self._limits.quota, self._limits.min_free
        if quota is not None and quota - self._ledger.occupied_bytes <= spare:
            why = f"of {_mb(quota)} allowed (storage.quota) {_mb(spare)} are left"
            hint = "Remove content (`meshnode ls`, `meshnode rm`), or raise storage.quota."
        else:
            why = f"the disk has {_mb(spare)} beyond the {_mb(min_free)} that stay free"
            hint = "Free some space on that disk, or lower storage.min_free_disk."
        return QuotaError(
            f"The store at {self._layout.root} has no room for {_mb(wanted)} more: {why}.",
            hint=hint,
        )

    def _fail(self, request: Request, error: StoreError | QuotaError) -> None:
        # Each caller gets an error of its own: a raised one collects its raiser's traceback.
        request.error = type(error)(error.message, hint=error.hint)
        request.error.__cause__ = error
        if isinstance(request, QuarantineRequest):
            self._quarantine_without_tombstone(request)

    def _quarantine_without_tombstone(self, request: QuarantineRequest) -> None:
        """A full or broken disk must not keep a rotten chunk in the index."""
        try:
            if self._index.quarantine(request.digest, request.where, request.reason):
                self._ledger.add(request.where.segment, -1)
        except (StoreError, QuotaError) as error:
            log.error("store_quarantine_failed", digest=request.digest.hex(), reason=str(error))
        else:
            request.error, request.done = None, True


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
