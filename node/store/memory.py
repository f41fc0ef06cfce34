"""A chunk store in memory, for tests and simulations. Same promises, except that nothing lasts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence

import trio
from blake3 import blake3

from ...errors import IntegrityError, NotFoundError, QuotaError
from .checks import as_views, check_digests, check_range, verify_all
from .frames import frame_bytes
from .protocol import Buffer, Digest, StoreStats

_NO_QUOTA_AVAILABLE = 1 << 40
"""What a store without a quota says it could still take; memory has no honest answer."""


class MemoryStore:
    """
    Args:
        quota: bytes, counted as a segment store counts them (with frames); None: no bound.
        on_rotten: told the digest of every chunk found rotten.
    """

    def __init__(
        self,
        *,
        quota: int | None = None,
        on_rotten: Callable[[Digest], None] | None = None,
    ) -> None:
        self._quota = quota
        self._on_rotten = on_rotten
        self._chunks: dict[Digest, bytes] = {}
        self._stored_bytes = 0

    async def has(self, digests: Sequence[Digest]) -> list[bool]:
        check_digests(digests)
        await trio.lowlevel.checkpoint()
        return [digest in self._chunks for digest in digests]

    async def sizes(self, digests: Sequence[Digest]) -> list[int | None]:
        check_digests(digests)
        await trio.lowlevel.checkpoint()
        found = [self._chunks.get(digest) for digest in digests]
        return [None if data is None else len(data) for data in found]

    async def put(self, chunks: Sequence[tuple[Digest, Buffer]], *, verify: bool = True) -> None:
        views = as_views(chunks)
        await trio.lowlevel.checkpoint()
        if verify:
            verify_all(views)
        new = {digest: data for digest, data in views if digest not in self._chunks}
        added = sum(frame_bytes(len(data)) for data in new.values())
        if added > self._available():
            raise QuotaError(
                f"The memory store has no room for {added} more bytes: quota {self._quota}, "
                f"{self._stored_bytes} stored.",
                hint="Delete content, or give it a larger quota.",
            )
        self._chunks.update((digest, bytes(data)) for digest, data in new.items())
        self._stored_bytes += added

    async def get(self, digest: Digest) -> bytes:
        check_digests([digest])
        await trio.lowlevel.checkpoint()
        data = self._chunks.get(digest)
        if data is None:
            raise NotFoundError(f"Chunk {digest.hex()} is not in the local store.")
        if blake3(data).digest() != digest:
            self._drop(digest)
            if self._on_rotten is not None:
                self._on_rotten(digest)
            raise IntegrityError(
                f"Chunk {digest.hex()} is damaged in memory. It counts as not held.",
                hint="Get it again from a peer.",
            )
        return data

    async def get_sized(self, digest: Digest, size: int) -> bytes | None:
        data = await self.get(digest)
        return data if len(data) == size else None

    async def get_range(self, digest: Digest, offset: int, length: int) -> bytes:
        data = await self.get(digest)
        check_range(digest, len(data), offset, length)
        return data[offset : offset + length]

    async def delete(self, digests: Sequence[Digest]) -> int:
        check_digests(digests)
        await trio.lowlevel.checkpoint()
        held = [digest for digest in dict.fromkeys(digests) if digest in self._chunks]
        for digest in held:
            self._drop(digest)
        return len(held)

    async def list(self) -> AsyncIterator[tuple[Digest, int]]:
        after = b""
        while True:
            await trio.lowlevel.checkpoint()
            digests = sorted(self._chunks)
            page = digests[bisect_right(digests, after) :][:1000]
            if not page:
                return
            for digest in page:
                if digest in self._chunks:
                    yield digest, len(self._chunks[digest])
            after = page[-1]

    async def stats(self) -> StoreStats:
        await trio.lowlevel.checkpoint()
        return StoreStats(len(self._chunks), self._stored_bytes, self._quota, self._available())

    def _available(self) -> int:
        if self._quota is None:
            return _NO_QUOTA_AVAILABLE
        return max(0, self._quota - self._stored_bytes)

    def _drop(self, digest: Digest) -> None:
        self._stored_bytes -= frame_bytes(len(self._chunks.pop(digest)))
