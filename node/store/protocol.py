"""The seam of the local store: chunks in, verified chunks out.

A chunk is its bytes as they travel (sealed, compressed); its name is the BLAKE3-256 digest of
exactly those bytes. The store knows nothing of keys, manifests or peers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Digest = bytes
"""32 bytes: BLAKE3-256 of a chunk's stored bytes."""

Buffer = bytes | bytearray | memoryview

MAX_CHUNK_BYTES = 8 * 1024 * 1024
"""Upper bound of one stored chunk; the largest chunker profile stays well below."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """A snapshot, cheap to take. All sizes in bytes."""

    chunks: int
    stored_bytes: int
    quota_bytes: int | None
    """None: bounded by the disk alone."""
    available_bytes: int
    """How much a put could still add: least of quota left and disk above its minimum."""


class ChunkStore(Protocol):
    """Where this node keeps chunks. Safe for many tasks at once."""

    async def has(self, digests: Sequence[Digest]) -> list[bool]:
        """For each digest, whether the chunk is held (index only, not re-verified)."""
        ...

    async def sizes(self, digests: Sequence[Digest]) -> list[int | None]:
        """For each digest, the stored size in bytes, or None when not held."""
        ...

    async def put(self, chunks: Sequence[tuple[Digest, Buffer]], *, verify: bool = True) -> None:
        """Store chunks; returns when all of them are durable (fsync and index commit).

        Chunks already held are skipped. `verify=False` only for bytes this process has just
        hashed itself.

        Raises:
            IntegrityError: bytes do not match their digest; none of this call's chunks is stored.
            QuotaError: quota, minimum free disk or a full disk; nothing half-acknowledged.
            StoreError: the disk failed.
        """
        ...

    async def get(self, digest: Digest) -> bytes:
        """The chunk, verified against its digest.

        Raises:
            NotFoundError: not held.
            IntegrityError: held, but rotten; it has been quarantined and is no longer `has`.
        """
        ...

    async def get_sized(self, digest: Digest, size: int) -> bytes | None:
        """As `get`, for callers that have made room for `size` bytes: None, and nothing is read,
        when the chunk has another size.

        Raises:
            NotFoundError, IntegrityError: as for `get`.
        """
        ...

    async def get_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` of a chunk verified as a whole.

        Raises:
            UsageError: the range is not inside the chunk.
            NotFoundError, IntegrityError: as for `get`.
        """
        ...

    async def delete(self, digests: Sequence[Digest]) -> int:
        """Forget chunks; returns how many were held."""
        ...

    def list(self) -> AsyncIterator[tuple[Digest, int]]:
        """All (digest, size) in digest order; a snapshot in pages, tolerant of changes."""
        ...

    async def stats(self) -> StoreStats: ...
