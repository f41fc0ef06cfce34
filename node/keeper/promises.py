"""Who was promised which chunk, and what goes when the last promise goes.

One lock orders promises and removals: without it a chunk could be deleted for its last owner
between the moment a new owner finds it here and the moment that owner's hold is written down.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from ...dht.peer_id import PeerId
from ...errors import StoreError, TransferError
from ..exchange import Kept
from ..store import Store
from ..store.holds import NO_ROOT
from .announcer import Announcer

_FOREVER = math.inf


class Withdrawing(Protocol):
    """The part of the DHT this needs."""

    async def withdraw(self, digests: Sequence[bytes]) -> None: ...


@dataclass(frozen=True, slots=True)
class Dropped:
    """What dropping the holds of a link came to. Sizes in bytes."""

    chunks: int
    """Chunks the link held."""
    unowned: tuple[bytes, ...]
    """Of these, those that no other link of this node holds: peers may let go of them too."""
    removed: int
    """Deleted here."""
    removed_bytes: int


class Promises:
    """Keeps and drops holds, and deletes chunks that nobody holds any more."""

    def __init__(
        self, self_id: PeerId, store: Store, dht: Withdrawing, announcer: Announcer
    ) -> None:
        self._self_id = self_id
        self._store = store
        self._dht = dht
        self._announcer = announcer
        self._lock = trio.Lock()
        self._unwritten: dict[tuple[PeerId, bytes], float] = {}

    async def keep_for_peer(self, kept: Kept) -> None:
        """A peer put a chunk here: write down, durably, what its receipt is about to promise.

        Promises that arrive while others are being written down go together in the next
        transaction: waiting for the disk is what costs, not rows.

        Raises:
            StoreError: the chunk was removed meanwhile; no receipt may be given.
        """
        self._unwritten[kept.owner, kept.digest] = float(kept.until)
        async with self._lock:
            if (kept.owner, kept.digest) in self._unwritten:
                await self._write_down()
            if not all(await self._store.chunks.has([kept.digest])):
                raise StoreError(f"Chunk {kept.digest.hex()[:16]} was removed meanwhile.")
        if kept.new:
            self._announcer.add([(kept.digest, kept.size)])

    async def _write_down(self) -> None:
        batch, self._unwritten = self._unwritten, {}
        try:
            await self._store.holds.add_many(
                [(digest, owner, NO_ROOT, until) for (owner, digest), until in batch.items()]
            )
        except BaseException:
            # The others in the batch must not take their promises for written.
            self._unwritten = {**batch, **self._unwritten}
            raise

    async def release_for_peer(self, owner: PeerId, digests: Sequence[bytes]) -> int:
        """A peer no longer wants these chunks kept; returns how many were kept for it."""
        async with self._lock:
            unowned, free = await self._store.holds.drop(owner, digests)
            await self._delete(free)
        return len(unowned)

    async def hold_link(self, root: bytes, digests: Collection[bytes]) -> None:
        """This node's own put is complete: hold all its chunks.

        Raises:
            TransferError: a chunk the put found here already was removed while it ran.
        """
        async with self._lock:
            await self._store.holds.add(self._self_id, digests, _FOREVER, root=root)
            held = await self._store.chunks.has(list(digests))
        if not all(held):
            raise TransferError(
                f"{held.count(False)} chunks of this put were removed while it ran.",
                hint="Put it again.",
            )

    async def drop_link(self, root: bytes) -> Dropped:
        """Drop everything this node holds for the link named `root`."""
        async with self._lock:
            digests = await self._store.holds.held_for(self._self_id, root)
            unowned, free = await self._store.holds.drop(self._self_id, digests, root=root)
            sizes = await self._store.chunks.sizes(free)
            removed = await self._delete(free)
        await self._dht.withdraw([root])
        return Dropped(
            len(digests), tuple(unowned), removed, sum(size for size in sizes if size is not None)
        )

    async def _delete(self, digests: Sequence[bytes]) -> int:
        self._announcer.forget(digests)
        await self._dht.withdraw(digests)
        return await self._store.chunks.delete(digests)
