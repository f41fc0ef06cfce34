"""Tells peers that we no longer want what they keep for us, now or when they are back.

What is to be told is written down when a link is dropped (`store.holds`). A round tells every
known peer; one that cannot be reached is remembered by name and told when it is connected again.
No round runs beside a put: see `promises`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from ...dht.peer_id import PeerId
from ...errors import MeshError
from ..exchange import Lane
from ..store import Store
from ..store.holds import ALL_PEERS
from .promises import Promises

log = structlog.get_logger(__name__)

EVERY_SECS = 30.0
_AT_ONCE = 8
_BATCH = 16_384


class Releasing(Protocol):
    """The part of the exchange this needs."""

    async def release(self, peer: PeerId, digests: Sequence[bytes], *, lane: Lane) -> int: ...


class Peers(Protocol):
    """Who could keep something for us."""

    def known(self) -> Iterable[PeerId]: ...
    def connected(self) -> Iterable[PeerId]: ...


@dataclass(slots=True)
class Round:
    """What one round came to."""

    released: dict[PeerId, int] = field(default_factory=dict)
    """Peers that let go of chunks, and of how many."""
    unreachable: set[PeerId] = field(default_factory=set)
    deferred: bool = False
    """A put runs; nothing was done yet."""


class Releaser:
    """`run` is its one task; `round` may be called beside it."""

    def __init__(self, promises: Promises, store: Store, exchange: Releasing, peers: Peers) -> None:
        self._promises = promises
        self._store = store
        self._exchange = exchange
        self._peers = peers

    async def run(self) -> None:
        """Do what is left over, until cancelled."""
        while True:
            try:
                await self.round(Lane.BACKGROUND)
            except MeshError as error:
                log.warning("release_failed", error=str(error), retry_secs=EVERY_SECS)
            await trio.sleep(EVERY_SECS)

    async def round(self, lane: Lane = Lane.INTERACTIVE) -> Round:
        """Delete what is free here, and tell peers what has not been told.

        Args:
            lane: whether somebody waits for it.

        Raises:
            StoreError: the local store failed.
        """
        done = Round()
        async with self._promises.releasing:
            if self._promises.putting_now:
                done.deferred = True
                return done
            await self._promises.delete_free()
            while digests := await self._owed(ALL_PEERS):
                known = list(self._peers.known())
                failed = await self._tell(known, digests, done, lane)
                await self._store.holds.told(digests, ALL_PEERS, owed=failed)
            await self._tell_late(done, lane)
        return done

    async def _tell_late(self, done: Round, lane: Lane) -> None:
        connected = set(self._peers.connected())
        for owed in await self._store.holds.owed_peers():
            peer = PeerId.from_bytes(owed)
            if peer not in connected or peer in done.unreachable:
                continue
            while digests := await self._owed(peer):
                if await self._tell([peer], digests, done, lane):
                    break
                await self._store.holds.told(digests, peer)

    async def _owed(self, peer: bytes) -> list[bytes]:
        return await self._store.holds.releases(self._promises.self_id, peer, _BATCH, time.time())

    async def _tell(
        self, peers: Sequence[PeerId], digests: Sequence[bytes], done: Round, lane: Lane
    ) -> list[PeerId]:
        """Returns the peers that could not be told."""
        failed: list[PeerId] = []
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def tell(peer: PeerId) -> None:
            async with limit:
                try:
                    count = await self._exchange.release(peer, digests, lane=lane)
                except MeshError as error:
                    log.info("peer_not_told_to_release", peer=peer.short, error=str(error))
                    failed.append(peer)
                    done.unreachable.add(peer)
                    return
            if count:
                done.released[peer] = done.released.get(peer, 0) + count

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(tell, peer)
        return failed
