"""What every chunk store demands of its arguments, in one place for all implementations."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from ...errors import IntegrityError, UsageError
from .protocol import MAX_CHUNK_BYTES, Buffer, Digest

DIGEST_BYTES = 32


def check_digests(digests: Sequence[Digest]) -> None:
    for digest in digests:
        if len(digest) != DIGEST_BYTES:
            raise UsageError(f"A digest is {DIGEST_BYTES} bytes, not {digest!r:.80}.")


def as_views(chunks: Sequence[tuple[Digest, Buffer]]) -> list[tuple[Digest, memoryview]]:
    """The chunks as flat byte views, without a copy.

    Raises:
        UsageError: no digest, too large, or not one run of memory.
    """
    check_digests([digest for digest, _ in chunks])
    views: list[tuple[Digest, memoryview]] = []
    for digest, data in chunks:
        view = memoryview(data)
        if not view.c_contiguous:
            raise UsageError("A chunk must be one contiguous run of bytes.")
        if view.nbytes > MAX_CHUNK_BYTES:
            raise UsageError(
                f"A chunk has {view.nbytes} bytes; the store takes at most {MAX_CHUNK_BYTES}."
            )
        # cast() refuses shapes with a zero in them.
        views.append((digest, view.cast("B") if view.nbytes else memoryview(b"")))
    return views


def verify_all(chunks: Sequence[tuple[Digest, memoryview]]) -> None:
    """Raises IntegrityError at the first chunk that is not what its digest says. Blocks."""
    for digest, data in chunks:
        if blake3(data).digest() != digest:
            raise IntegrityError(
                f"{len(data)} bytes offered as chunk {digest.hex()} do not have that digest.",
                hint="They were damaged on the way; get them again.",
            )


def check_range(digest: Digest, size: int, offset: int, length: int) -> None:
    """Raises UsageError unless `length` bytes from `offset` lie inside a chunk of `size`."""
    if offset < 0 or length < 0 or offset + length > size:
        raise UsageError(
            f"Chunk {digest.hex()} has {size} bytes; {length} from {offset} are not inside it."
        )
