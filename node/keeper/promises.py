"""Who was promised which chunk, and what goes when the last promise goes.

Two orders are kept. Promises and removals on this node follow each other under one lock, which is
never held across the network: without it a chunk could be deleted for its last owner while a new
owner's hold is being written down. And nothing is deleted here or released at peers while a put
runs (`putting`): a put counts chunks and copies that it found in place.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from ...dht.peer_id import PeerId
from ...errors import StoreError, TransferError
from ..exchange import Kept
from ..store import Store
from ..store.holds import HERE, NO_ROOT, UNFINISHED
from .announcer import Announcer
from .catalogue import Catalogue, CatalogueEntry

_DELETE_AT_ONCE = 1000
RELEASE_WITHIN_SECS = 90 * 86_400.0
"""How long an unreachable peer is remembered: the longest lease it can have given."""


class LettingGo(Protocol):
    """The part of the DHT this needs."""

    def let_go(self, digests: Sequence[bytes]) -> None: ...


@dataclass(frozen=True, slots=True)
class Dropped:
    """What dropping the holds of a link came to."""

    chunks: int
    """Chunks the link held."""
    free: int
    """Of these, those that nobody holds any more: deleted as soon as no put runs."""
    free_bytes: int


@dataclass(slots=True, eq=False)
class _Promise:
    """One that is to be written down before its receipt goes out."""

    kept: Kept
    here: bool | None = None
    """Whether the chunk is here, and so held now; None: not looked at yet."""


class Promises:
    """Keeps and drops holds, and deletes chunks that nobody holds any more."""

    def __init__(
        self,
        self_id: PeerId,
        store: Store,
        dht: LettingGo,
        announcer: Announcer,
        catalogue: Catalogue,
    ) -> None:
        self.self_id = self_id
        self.releasing = trio.Lock()
        """Held by whoever tells peers to let go; a put does not begin meanwhile."""
        self._store = store
        self._dht = dht
        self._announcer = announcer
        self._catalogue = catalogue
        self._lock = trio.Lock()
        self._unwritten: list[_Promise] = []
        self._puts = 0

    @property
    def putting_now(self) -> bool:
        """Whether a put runs on this node."""
        return self._puts > 0

    @asynccontextmanager
    async def putting(self) -> AsyncIterator[None]:
        """A put runs for the length of the block."""
        async with self.releasing, self._lock:
            self._puts += 1
        try:
            yield
        finally:
            self._puts -= 1

    async def keep_for_peer(self, kept: Kept) -> None:
        """A peer put a chunk here: write down, durably, what its receipt is about to promise.

        Promises that arrive while others are being written down go together in the next
        transaction: waiting for the disk is what costs, not rows.

        Raises:
            StoreError: the chunk was removed meanwhile; no receipt may be given.
        """
        promise = _Promise(kept)
        self._unwritten.append(promise)
        try:
            async with self._lock:
                if promise.here is None:
                    await self._write_down()
        finally:
            if promise in self._unwritten:
                self._unwritten.remove(promise)  # no receipt comes of it
        if not promise.here:
            raise StoreError(f"Chunk {kept.digest.hex()[:16]} was removed meanwhile.")
        if kept.new:
            self._announcer.add([(kept.digest, kept.size)])

    async def announce_unheard(self, chunks: Sequence[tuple[bytes, int]]) -> int:
        """Queue those of `chunks` (digest, size) that are here; returns how many that are."""
        async with self._lock:
            # Deletions happen under the lock: what is here now is announced before it can go.
            here = await self._store.chunks.has([digest for digest, _ in chunks])
            kept = [chunk for chunk, held in zip(chunks, here, strict=True) if held]
            self._announcer.add(kept)
        return len(kept)

    async def _write_down(self) -> None:
        batch, self._unwritten = self._unwritten, []
        rows = [(p.kept.digest, p.kept.owner, NO_ROOT, float(p.kept.until)) for p in batch]
        try:
            here = await self._store.holds.add_present(rows)
        except BaseException:
            # The others in the batch must not take their promises for written.
            self._unwritten = batch + self._unwritten
            raise
        for promise in batch:
            promise.here = promise.kept.digest in here

    async def release_for_peer(self, owner: PeerId, digests: Sequence[bytes]) -> int:
        """A peer no longer wants these chunks kept; returns how many were kept for it."""
        async with self._lock:
            letting = await self._store.holds.letting(owner, digests)
            await self._store.holds.drop(owner, letting.held, free=letting.free)
            await self._delete_free()
        return len(letting.held)

    async def hold_link(self, entry: CatalogueEntry, digests: Collection[bytes]) -> None:
        """This node's own put is complete: hold all its chunks, and enter it in the catalogue.

        Raises:
            TransferError: a chunk is not here any more (quarantined while the put ran).
        """
        async with self._lock:
            held = await self._store.chunks.has(list(digests))
            if not all(held):
                raise TransferError(
                    f"{held.count(False)} chunks of {entry.name} were lost while it was put.",
                    hint="Put it again; if it happens again, check the disk.",
                )
            root = entry.link.digest
            await self._store.holds.complete(self.self_id, digests, root)
            await self._catalogue.add(entry)

    async def drop_link(self, root: bytes) -> Dropped:
        """Drop everything this node holds for the link named `root`. What peers keep for it is
        noted down to be released.

        Raises:
            NotFoundError: nothing of that name was put here.
        """
        holds = self._store.holds
        async with self._lock:
            await self._catalogue.find(root)
            digests = await holds.held_for(self.self_id, root)
            letting = await holds.letting(self.self_id, digests, root=root)
            sizes = await self._store.chunks.sizes(letting.free)
            await holds.drop(
                self.self_id,
                letting.held,
                root=root,
                release=letting.unowned,
                free=letting.free,
                until=time.time() + RELEASE_WITHIN_SECS,
            )
            await self._catalogue.remove(root)
            self._dht.let_go([root])
        self._announcer.withdraw([root])
        return Dropped(
            len(digests), len(letting.free), sum(size for size in sizes if size is not None)
        )

    async def drop_overdue(self, now: float, at_most: int = _DELETE_AT_ONCE) -> int:
        """Let go of chunks that a put has left unfinished for too long, here and (noted down to be
        released) at peers; returns how many. None while a put runs: it may take them up again."""
        holds = self._store.holds
        async with self._lock:
            if self._puts:
                return 0
            digests = await holds.overdue(self.self_id, now, at_most)
            letting = await holds.letting(self.self_id, digests, root=UNFINISHED)
            await holds.drop(
                self.self_id,
                letting.held,
                root=UNFINISHED,
                release=letting.unowned,
                free=letting.free,
                until=now + RELEASE_WITHIN_SECS,
            )
        return len(digests)

    async def delete_free(self) -> None:
        """Delete what nobody holds any more, unless a put runs: then later."""
        async with self._lock:
            await self._delete_free()

    async def _delete_free(self) -> None:
        while not self._puts:
            digests = await self._store.holds.deletable(_DELETE_AT_ONCE)
            if not digests:
                return
            self._dht.let_go(digests)
            self._announcer.withdraw(digests)
            await self._store.chunks.delete(digests)
            await self._store.holds.told(digests, HERE)
