"""`ChunkStore` over segment files: the asynchronous face of writer, index and segments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import structlog
import trio
from blake3 import blake3

from ...errors import IntegrityError, MeshError, NotFoundError, StoreError
from .checks import as_views, check_digests, check_range, verify_all
from .files import disk_error
from .frames import frame_bytes
from .gate import Gate
from .group_commit import GroupCommit
from .index import Index, Location
from .layout import Layout
from .ledger import Ledger
from .protocol import Buffer, Digest, StoreStats
from .segments import SegmentFiles
from .writer import DeleteRequest, Limits, PutRequest, QuarantineRequest, Request, Writer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("meshnode.store")

_COMMIT_BYTES = 64 * 1024 * 1024
"""Of chunks in one group commit: 30-60 ms of a 1-2 GB/s disk, ten times what a sync costs."""
_PAGE = 1_000
_TOMBSTONE_WEIGHT = frame_bytes(0)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A chunk that was held and turned out rotten. It is no longer held; get it from a peer."""

    digest: Digest
    size: int
    segment: int
    offset: int
    """Of the entry in the segment file."""
    reason: str


OnQuarantine = Callable[[Quarantined], None]
"""Called in the task that found out, before it gets its IntegrityError. Must not raise or block."""


@dataclass(frozen=True, slots=True)
class DiskThreads:
    """Threads for the disk, counted apart so that slow disks do not starve other users of threads.

    A hop to a thread costs 60-100 us, a verified read of 1 MiB about 500.
    """

    reads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(8))
    hashing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(4))
    commit: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))


@dataclass(frozen=True, slots=True)
class _Rotten:
    where: Location
    reason: str


class SegmentStore:
    def __init__(
        self,
        *,
        layout: Layout,
        segment_files: SegmentFiles,
        index: Index,
        writer: Writer,
        ledger: Ledger,
        limits: Limits,
        gate: Gate,
        threads: DiskThreads,
        on_quarantine: OnQuarantine | None,
    ) -> None:
        self._layout = layout
        self._segment_files = segment_files
        self._index = index
        self._writer = writer
        self._ledger = ledger
        self._limits = limits
        self._gate = gate
        self._threads = threads
        self._on_quarantine = on_quarantine
        self._commits: GroupCommit[Request] = GroupCommit(
            writer.commit, threads.commit, _COMMIT_BYTES
        )
        # Who is storing which digest right now. The event is set when that put has ended, well or
        # not; whoever waits for it looks again.
        self._storing: dict[Digest, trio.Event] = {}

    # --- asking ---------------------------------------------------------------------------

    async def has(self, digests: Sequence[Digest]) -> list[bool]:
        return [size is not None for size in await self.sizes(digests)]

    async def sizes(self, digests: Sequence[Digest]) -> list[int | None]:
        check_digests(digests)
        with self._gate.enter():
            found = await trio.to_thread.run_sync(
                self._index.locate_many, digests, limiter=self._threads.reads
            )
        return [found[digest].length if digest in found else None for digest in digests]

    async def list(self) -> AsyncIterator[tuple[Digest, int]]:
        after = b""
        while True:
            with self._gate.enter():
                page = await trio.to_thread.run_sync(
                    self._index.page, after, _PAGE, limiter=self._threads.reads
                )
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    async def stats(self) -> StoreStats:
        with self._gate.enter():
            available = await trio.to_thread.run_sync(
                self._writer.available_bytes, limiter=self._threads.reads
            )
        return StoreStats(
            chunks=self._ledger.chunks,
            stored_bytes=self._ledger.occupied_bytes,
            quota_bytes=self._limits.quota,
            available_bytes=available,
        )

    # --- reading --------------------------------------------------------------------------

    async def get(self, digest: Digest) -> bytes:
        data = await self._get(digest, None)
        assert data is not None
        return data

    async def get_sized(self, digest: Digest, size: int) -> bytes | None:
        return await self._get(digest, size)

    async def _get(self, digest: Digest, size: int | None) -> bytes | None:
        check_digests([digest])
        with self._gate.enter():
            outcome = await trio.to_thread.run_sync(
                self._read, digest, size, limiter=self._threads.reads
            )
            if isinstance(outcome, _Rotten):
                raise await self._quarantine(digest, outcome)
            return outcome

    async def get_range(self, digest: Digest, offset: int, length: int) -> bytes:
        data = await self.get(digest)
        check_range(digest, len(data), offset, length)
        return data[offset : offset + length]

    def _read(self, digest: Digest, size: int | None) -> bytes | _Rotten | None:
        """Look up, read and verify, in one visit to a thread; None when it has not `size` bytes."""
        where = self._index.locate(digest)
        while where is not None:
            if size is not None and where.length != size:
                return None
            try:
                data = self._segment_files.read(where.segment, where.payload, where.length)
            except OSError as error:
                # The segment may have been removed since: then the chunk was deleted.
                before, where = where, self._index.locate(digest)
                if where == before:
                    raise disk_error("read", self._layout.segment(where.segment), error) from error
                continue
            if blake3(data).digest() == digest:
                return data
            reason = "the bytes do not have this digest"
            if len(data) < where.length:
                reason = "the segment file ends before the chunk does"
            return _Rotten(where, reason)
        raise NotFoundError(f"Chunk {digest.hex()} is not in the local store.")

    async def _quarantine(self, digest: Digest, rotten: _Rotten) -> IntegrityError:
        """Make sure that nobody is told any more that we hold it."""
        where = rotten.where
        path = self._layout.segment(where.segment)
        log.error(
            "store_chunk_rotten",
            digest=digest.hex(),
            path=str(path),
            offset=where.offset,
            reason=rotten.reason,
        )
        request = QuarantineRequest(digest, where, rotten.reason)
        await self._commits.submit(request, _TOMBSTONE_WEIGHT)
        if self._on_quarantine is not None:
            self._on_quarantine(
                Quarantined(digest, where.length, where.segment, where.offset, rotten.reason)
            )
        return IntegrityError(
            f"Chunk {digest.hex()} is damaged in {path} at {where.offset}: {rotten.reason}. "
            "It was set aside and counts as not held.",
            hint="Get it again from a peer; if this happens often, the disk is failing.",
        )

    # --- changing -------------------------------------------------------------------------

    async def put(self, chunks: Sequence[tuple[Digest, Buffer]], *, verify: bool = True) -> None:
        views = as_views(chunks)
        with self._gate.enter():
            if verify:
                # Before duplicates go: each of two different contents under one digest counts.
                await trio.to_thread.run_sync(verify_all, views, limiter=self._threads.hashing)
            wanted = dict(views)
            while wanted := await self._without_held(wanted):
                mine = {
                    digest: data for digest, data in wanted.items() if digest not in self._storing
                }
                others = [event for digest, event in self._storing.items() if digest in wanted]
                if mine:
                    await self._store(mine)
                for event in others:
                    await event.wait()
                wanted = {digest: wanted[digest] for digest in wanted if digest not in mine}

    async def delete(self, digests: Sequence[Digest]) -> int:
        check_digests(digests)
        with self._gate.enter():
            request = DeleteRequest(list(dict.fromkeys(digests)))
            await self._commits.submit(request, _TOMBSTONE_WEIGHT * len(request.digests))
            _raise_failure(request)
            return request.deleted

    async def _without_held(self, wanted: dict[Digest, memoryview]) -> dict[Digest, memoryview]:
        if not wanted:
            return wanted
        held = await trio.to_thread.run_sync(
            self._index.locate_many, list(wanted), limiter=self._threads.reads
        )
        return {digest: data for digest, data in wanted.items() if digest not in held}

    async def _store(self, chunks: dict[Digest, memoryview]) -> None:
        ended = trio.Event()
        for digest in chunks:
            self._storing[digest] = ended
        try:
            request = PutRequest(list(chunks.items()))
            weight = sum(frame_bytes(len(data)) for data in chunks.values())
            await self._commits.submit(request, weight)
        finally:
            for digest in chunks:
                del self._storing[digest]
            ended.set()
        _raise_failure(request)


def _raise_failure(request: Request) -> None:
    error: MeshError | None = request.error
    if error is not None:
        raise error
    if not request.done:
        raise StoreError("A commit of the local store broke off; see the log for its cause.")
