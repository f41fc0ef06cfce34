"""The local half of a put: read, cut, seal, store, each stage while the others work.

    reader (a thread) -> windows -> sealers (threads) -> store, group commit -> on to placing

Bytes held at once are bounded by the number of windows, of sealers, and by the uploader's budget;
they do not depend on how much is put.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from ..content import SealedChunk, Sealer
from ..exchange import Receipt
from ..store.protocol import Digest
from .announce import Announcer
from .context import TransferContext
from .events import FileDone, ProgressMeter
from .failures import task_group
from .memory import untouched_memory
from .reading import (
    Draft,
    FileCut,
    FilesReader,
    SealedMemory,
    Window,
    seal_window,
)
from .source import Failure
from .tracing import Tracer
from .upload import Uploader

_T = TypeVar("_T")

_SEALERS = 2
_WINDOWS = 3


class BufferPool:
    """The few buffers that all sources of one put read into; made when first needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[memoryview] = []
        self._permits = trio.Semaphore(_WINDOWS)

    async def take(self) -> memoryview:
        await self._permits.acquire()
        return self._free.pop() if self._free else untouched_memory(self._size)

    def give_back(self, buffer: memoryview) -> None:
        self._free.append(buffer)
        self._permits.release()


@dataclass(slots=True)
class Ingested:
    """What one source became in the local store."""

    drafts: list[Draft] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    new_chunks: int = 0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages shared by all sources of one put."""

    ctx: TransferContext
    sealer: Sealer
    buffers: BufferPool
    threads: trio.CapacityLimiter
    uploader: Uploader
    announcer: Announcer
    meter: ProgressMeter
    tracer: Tracer

    async def ingest_files(self, reader: FilesReader) -> Ingested:
        """Everything `reader` reads, sealed and durable here, and on its way to other nodes."""

        async def read(windows: trio.MemorySendChannel[Window]) -> None:
            while True:
                buffer = await self.buffers.take()
                try:
                    with self.tracer.phase("reading"):
                        window = await self._in_thread(partial(reader.fill, buffer))
                    if window is None:
                        self.buffers.give_back(buffer)
                        return
                    await windows.send(window)
                except BaseException:
                    self.buffers.give_back(buffer)
                    raise

        try:
            return await self._run(read)
        finally:
            reader.close()

    async def ingest_stream(self, chunks: AsyncIterator[bytes], file: FileCut) -> Ingested:
        """The same for bytes that come from elsewhere."""

        async def read(windows: trio.MemorySendChannel[Window]) -> None:
            filler = _StreamFiller(file, await self.buffers.take())
            try:
                while (data := await self._next(chunks)) is not None:
                    view = memoryview(data)
                    while view := filler.take(view):
                        rest = await self._in_thread(filler.cut)
                        await filler.hand_over(windows)
                        filler.begin(await self.buffers.take(), rest)
                await self._in_thread(filler.finish)
                await filler.hand_over(windows)
            finally:
                if filler.window is not None:
                    self.buffers.give_back(filler.window.buffer)

        return await self._run(read)

    async def store(self, chunks: list[SealedChunk]) -> int:
        """Make chunks durable here, then have them announced and placed; returns how many were
        new to this node."""
        if not chunks:
            return 0
        digests = [chunk.ref.digest for chunk in chunks]
        with self.tracer.phase("storing"):
            held = await self.ctx.store.has(digests)
            new = [chunk for chunk, here in zip(chunks, held, strict=True) if not here]
            if new:
                await self.ctx.store.put([(c.ref.digest, c.data) for c in new], verify=False)
        self.ctx.journal.stored(digests)
        receipts = await self._receipts(digests, held)
        with self.tracer.phase("waiting for room"):
            for digest, chunk in zip(digests, chunks, strict=True):
                if not self.uploader.knows(digest):
                    self.announcer.add(digest, chunk.ref.size)
                    await self.uploader.submit(chunk, receipts.get(digest, ()))
        return len(new)

    async def _receipts(
        self, digests: list[Digest], held: list[bool]
    ) -> Mapping[Digest, Sequence[Receipt]]:
        """What peers signed for earlier. Of a chunk that is new here, nobody has."""
        old = [
            digest
            for digest, here in zip(digests, held, strict=True)
            if here and not self.uploader.knows(digest)
        ]
        return await self.ctx.journal.receipts(old) if old and self.uploader.wanted else {}

    # --- inside -------------------------------------------------------------------------------

    async def _run(
        self, read: Callable[[trio.MemorySendChannel[Window]], Awaitable[None]]
    ) -> Ingested:
        result = Ingested()
        send, receive = trio.open_memory_channel[Window](0)

        async def produce() -> None:
            async with send:
                await read(send)

        async with task_group() as tasks:
            tasks.start_soon(produce)
            for _ in range(_SEALERS):
                tasks.start_soon(self._seal, receive.clone(), result)
            receive.close()
        return result

    async def _seal(self, windows: trio.MemoryReceiveChannel[Window], result: Ingested) -> None:
        # Chunks that are sent away are kept until they have arrived; others are done with when
        # they are stored.
        memory = None if self.uploader.wanted else SealedMemory()
        async with windows:
            async for window in windows:
                seal = partial(seal_window, window, self.sealer, memory)
                try:
                    with self.tracer.phase("sealing"):
                        chunks = await self._in_thread(seal)
                finally:
                    self.buffers.give_back(window.buffer)
                new = await self.store(chunks)
                result.new_chunks += new  # after the wait: the other sealer adds to it, too
                result.drafts += window.finished
                self._note_failures(window.failures, result)
                self.meter.advance(nbytes=window.bytes_read, chunks=len(chunks))

    def _note_failures(self, failures: list[Failure], result: Ingested) -> None:
        result.failures += failures
        for failure in failures:
            self.meter.tell(FileDone(failure.shown, "failed", failure.reason))

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """Bytes that come from elsewhere; how long they let us wait goes into the trace."""
        with self.tracer.phase("reading"):
            return await anext(chunks, None)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self.threads)


class _StreamFiller:
    """Fills windows with bytes that are handed in. Owns a buffer while `window` is not None."""

    def __init__(self, file: FileCut, buffer: memoryview) -> None:
        self._file = file
        self.window: Window | None = Window(buffer)

    @property
    def _filling(self) -> Window:
        assert self.window is not None, "between two windows"
        return self.window

    def begin(self, buffer: memoryview, carried: bytes) -> None:
        buffer[: len(carried)] = carried
        self.window = Window(buffer, used=len(carried))

    async def hand_over(self, windows: trio.MemorySendChannel[Window]) -> None:
        """Pass a window that was cut on to the sealers; it stays ours when that is cancelled."""
        await windows.send(self._filling)
        self.window = None

    def take(self, data: memoryview) -> memoryview:
        """Copy what fits; returns the rest, empty unless the window is full."""
        window = self._filling
        part = data[: len(window.buffer) - window.used]
        window.buffer[window.used : window.used + len(part)] = part
        window.used += len(part)
        window.bytes_read += len(part)
        return data[len(part) :]

    def cut(self) -> bytes:
        """Hash and cut a full window; returns what belongs to the next one."""
        self._hash_new()
        window = self._filling
        rest = self._file.cut(window, 0, final=False)
        return bytes(window.buffer[rest : window.used])

    def finish(self) -> None:
        """The stream has ended."""
        self._hash_new()
        self._file.cut(self._filling, 0, final=True)
        self._filling.finished.append(self._file.draft)

    def _hash_new(self) -> None:
        window = self._filling
        self._file.hash(window.buffer[window.used - window.bytes_read : window.used])


def thread_count() -> int:
    """Worker threads of one node's transfers: one per core, and some that wait for the disk."""
    return (os.cpu_count() or 1) + 2


def digests_of(drafts: list[Draft]) -> set[Digest]:
    """All chunks these files consist of, once their pieces are sealed."""
    found = {ref.digest for draft in drafts for ref in draft.refs if ref is not None}
    found.update(draft.slot.ref.digest for draft in drafts if draft.slot is not None)
    return found
