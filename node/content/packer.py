"""Packs: many small whole files in one chunk, so that ten thousand files are not as many chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from .chunker import DEFAULT_TARGET, MAX_TARGET
from .limits import Buffer, Digest
from .sealing import ChunkRef, SealedChunk, Sealer

SMALL_FILE_BYTES: Final = 64 * 1024
"""Files below this size are packed."""


@dataclass(slots=True)
class PackSlot:
    """Where a file lies in its pack: `length` plaintext bytes from `offset` of the chunk `ref`."""

    offset: int
    length: int
    _ref: ChunkRef | None = field(default=None, repr=False)

    @property
    def ref(self) -> ChunkRef:
        """The chunk that holds the file; known once its pack is sealed."""
        if self._ref is None:
            raise RuntimeError("the pack of this slot is not sealed yet: flush the packer first")
        return self._ref


class Packer:
    """Collects small files of one put into chunks of about `target` bytes.

    One packer belongs to one put: what shares a chunk shares its key. Files of equal content
    share a slot. Adding the same files in the same order gives the same packs. Not thread-safe.

    Args:
        sealer: seals each full pack, once.
        target: plaintext bytes of a pack, at most 4 MiB.
    """

    def __init__(self, sealer: Sealer, target: int = DEFAULT_TARGET) -> None:
        if not 0 < target <= MAX_TARGET:
            raise ValueError(f"a pack holds 1 to {MAX_TARGET} bytes, not {target}")
        self._sealer = sealer
        self._target = target
        self._pending = bytearray()
        """Memory of the pack that is being filled, and of the next one after it."""
        self._used = 0
        self._open: list[PackSlot] = []
        self._slots: dict[Digest, PackSlot] = {}
        self._sealed: list[SealedChunk] = []

    def add(self, data: Buffer, digest: Digest | None = None) -> PackSlot:
        """Place one whole file of 1 to `MAX_TARGET` bytes; `digest` is its BLAKE3-256, if known.

        Seals the pack before it when the file does not fit any more: CPU work for a worker thread.
        """
        size = memoryview(data).nbytes
        if not 0 < size <= MAX_TARGET:
            raise ValueError(f"a packed file has 1 to {MAX_TARGET} bytes, not {size}")
        digest = digest or blake3(data).digest()
        slot = self._slots.get(digest)
        if slot is not None:
            return slot
        if self._used and self._used + size > self._target:
            self._seal()
        slot = PackSlot(self._used, size)
        self._used += size
        if self._used > len(self._pending):
            self._pending += bytes(max(self._target, self._used) - len(self._pending))
        self._pending[slot.offset : self._used] = data
        self._slots[digest] = slot
        self._open.append(slot)
        return slot

    def take(self) -> list[SealedChunk]:
        """The packs sealed since the last call; store them."""
        taken, self._sealed = self._sealed, []
        return taken

    def flush(self) -> list[SealedChunk]:
        """Seal what is left and return all packs not yet taken. Every slot has its `ref` now."""
        if self._used:
            self._seal()
        return self.take()

    def _seal(self) -> None:
        with memoryview(self._pending) as whole, whole[: self._used] as pack:
            chunk = self._sealer.seal_own(pack)
        for slot in self._open:
            slot._ref = chunk.ref
        self._sealed.append(chunk)
        self._used = 0
        self._open = []
