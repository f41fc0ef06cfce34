"""Telling the mesh what we hold: announcements, withdrawals, manifests, and repeating them.

Keys are grouped by the peers responsible for them: one request per peer carries all of its keys. A
key that too few peers took is offered to the next nearest ones, as those that failed are then known
to be down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from ..errors import MeshError, UsageError
from .boundary import as_peer_error
from .context import DhtContext
from .keyspace import BITS, check_digest, chunk_position, manifest_position
from .locator import Locator
from .manifests import ManifestStore, check_manifest
from .patience import Patience
from .peer_id import PeerId
from .records import ChunkRecords
from .records_wire import Verdict
from .settings import MAX_KEYS_PER_MESSAGE

_PARALLEL_PEERS = 64
_PASSES = 3
_OFFERED_MANIFESTS = 2_000
_OFFER_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class PeerFailure:
    """A peer that was asked (or skipped as known to be down), and why it did not help."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceReport:
    """What became of an announcement.

    `stored` maps each digest to how many peers besides ourselves took its record; `refused` counts
    keys by the reason a peer gave.
    """

    stored: Mapping[bytes, int]
    asked: tuple[PeerId, ...]
    failed: tuple[PeerFailure, ...]
    refused: Mapping[str, int]

    @property
    def weakest(self) -> int:
        """Storers of the key that fewest peers took; 0 when nothing was announced."""
        return min(self.stored.values(), default=0)


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The peers besides ourselves that keep a manifest, and those that failed to."""

    stored_on: tuple[PeerId, ...]
    failed: tuple[PeerFailure, ...]


@dataclass(slots=True)
class _Tally:
    """Collects an `AnnounceReport`."""

    stored: dict[bytes, int]
    asked: dict[PeerId, None] = field(default_factory=dict)
    failed: dict[PeerId, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    told: set[tuple[PeerId, bytes]] = field(default_factory=set)

    def report(self) -> AnnounceReport:
        failed = tuple(PeerFailure(peer, reason) for peer, reason in self.failed.items())
        return AnnounceReport(self.stored, tuple(self.asked), failed, dict(self.refused))


class Publisher:
    """Our own records, and who has been told of them."""

    def __init__(
        self,
        context: DhtContext,
        locator: Locator,
        chunks: ChunkRecords,
        manifests: ManifestStore,
    ) -> None:
        self._own = context.own
        self._locator = locator
        self._client = context.client
        self._chunks = chunks
        self._manifests = manifests
        self._settings = context.settings
        self._counters = context.counters
        self._patience = Patience(context.counters)
        self._offered: dict[PeerId, float] = {}
        """Peers that have all they are responsible for, and since when (trio time)."""

    # --- chunks -------------------------------------------------------------------------------

    def hold(self, chunks: Iterable[tuple[bytes, int]]) -> dict[bytes, int]:
        """Remember that we hold `chunks` (digest, stored size), and will say so until withdrawn.

        Raises:
            UsageError: a digest or a size that cannot be.
        """
        held = dict(chunks)
        for digest, size in held.items():
            check_digest(digest)
            if not 0 <= size < 2**32:
                raise UsageError(f"A chunk of {size} bytes cannot be announced.")
        for digest, size in held.items():
            self._chunks.hold(digest, size)
        return held

    async def spread(self, held: Mapping[bytes, int]) -> AnnounceReport:
        """Tell the peers responsible for the keys of `held` that we hold them."""
        tally = _Tally(dict.fromkeys(held, 0))
        position_of = {digest: chunk_position(digest) for digest in held}
        for peer in self._locator.down():
            tally.failed[peer] = "not answering lately"
        todo = list(held)
        for _ in range(_PASSES):
            near = await self._locator.locate(position_of[digest] for digest in todo)
            groups: dict[PeerId, list[tuple[bytes, int]]] = {}
            for digest in todo:
                for peer in near[position_of[digest]]:
                    if peer != self._own and (peer, digest) not in tally.told:
                        groups.setdefault(peer, []).append((digest, held[digest]))
            if not groups:
                break
            await self._announce_to_all(groups, tally)
            todo = [d for d in todo if tally.stored[d] < self._settings.enough_holders]
            if not todo:
                break
        self._forget_offers_except(self._locator.everyone() - set(tally.failed))
        self._counters.add("keys_announced", len(held))
        return tally.report()

    def let_go(self, digests: Sequence[bytes]) -> None:
        """Stop holding and repeating these chunks and manifests; nobody is told yet.

        Raises:
            UsageError: not a digest; then nothing has changed.
        """
        for digest in digests:
            check_digest(digest)
        self._chunks.let_go(digests)
        for digest in digests:
            self._manifests.forget_own(digest)

    async def tell_withdrawn(self, digests: Sequence[bytes]) -> None:
        """Tell the peers that were told of `digests` that we hold them no longer.

        What we hold again by now is left out: its new announcement may be under way.
        """
        for digest in digests:
            check_digest(digest)
        position_of = {d: chunk_position(d) for d in digests if not self._chunks.holds(d)}
        near = await self._locator.locate(position_of.values())
        groups: dict[PeerId, list[bytes]] = {}
        for digest, position in position_of.items():
            for peer in near[position]:
                if peer != self._own:
                    groups.setdefault(peer, []).append(digest)
        async with trio.open_nursery() as nursery:
            for peer, keys in groups.items():
                nursery.start_soon(self._withdraw_from, peer, keys)

    async def _announce_to_all(
        self, groups: Mapping[PeerId, Sequence[tuple[bytes, int]]], tally: _Tally
    ) -> None:
        limiter = trio.CapacityLimiter(_PARALLEL_PEERS)

        async def tell(peer: PeerId, chunks: Sequence[tuple[bytes, int]]) -> None:
            async with limiter:
                await self._announce_to(peer, chunks, tally)

        async with trio.open_nursery() as nursery:
            for peer, chunks in groups.items():
                nursery.start_soon(tell, peer, chunks)

    async def _announce_to(
        self, peer: PeerId, chunks: Sequence[tuple[bytes, int]], tally: _Tally
    ) -> None:
        """All of one peer's keys, batch after batch; the first failure ends it."""
        tally.asked[peer] = None
        tally.told.update((peer, digest) for digest, _ in chunks)
        zone, ttl = self._settings.zone, int(self._settings.record_ttl)
        for start in range(0, len(chunks), MAX_KEYS_PER_MESSAGE):
            # What was let go meanwhile must not be announced after its withdrawal.
            batch = [
                chunk
                for chunk in chunks[start : start + MAX_KEYS_PER_MESSAGE]
                if self._chunks.holds(chunk[0])
            ]
            if not batch:
                continue
            try:
                ask = partial(self._client.announce, peer, zone, ttl, batch)
                verdicts = await self._patience.ask(peer, ask)
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                tally.failed[peer] = as_peer_error(error, peer, self._counters).message
                return
            for (digest, _), verdict in zip(batch, verdicts, strict=True):
                if verdict is Verdict.STORED:
                    tally.stored[digest] += 1
                else:
                    tally.refused[verdict.name.lower()] += 1

    async def _withdraw_from(self, peer: PeerId, digests: Sequence[bytes]) -> None:
        for start in range(0, len(digests), MAX_KEYS_PER_MESSAGE):
            batch = digests[start : start + MAX_KEYS_PER_MESSAGE]
            gone = [digest for digest in batch if not self._chunks.holds(digest)]
            if not gone:
                continue
            try:
                await self._patience.ask(peer, partial(self._client.withdraw, peer, gone))
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                as_peer_error(error, peer, self._counters)
                # Its records of ours expire by themselves.
                self._counters.add("withdrawals_failed")
                return

    # --- manifests ----------------------------------------------------------------------------

    async def put_manifest(self, digest: bytes, value: bytes) -> StoreReport:
        """Keep a manifest as ours, and store it on the k nearest peers.

        Raises:
            RefusedError: larger than the DHT keeps.
            IntegrityError: `value` is not what `digest` names.
        """
        check_manifest(digest, value)
        self._manifests.put_own(digest, value)
        return await self.spread_manifest(digest, value)

    async def spread_manifest(self, digest: bytes, value: bytes) -> StoreReport:
        target = manifest_position(digest)
        stored: dict[PeerId, None] = {}
        failed = dict.fromkeys(self._locator.down(), "not answering lately")
        tried: set[PeerId] = {self._own}

        async def put(peer: PeerId) -> None:
            try:
                await self._client.put_manifest(peer, digest, value)
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                failed[peer] = as_peer_error(error, peer, self._counters).message
            else:
                stored[peer] = None
                failed.pop(peer, None)

        for _ in range(_PASSES):
            near = (await self._locator.locate([target]))[target]
            fresh = [peer for peer in near if peer not in tried]
            if not fresh or len(stored) >= self._settings.enough_holders:
                break
            tried.update(fresh)
            async with trio.open_nursery() as nursery:
                for peer in fresh:
                    nursery.start_soon(put, peer)
        self._forget_offers_except(self._locator.everyone() - set(failed))
        self._counters.add("manifests_put")
        return StoreReport(
            tuple(stored), tuple(PeerFailure(peer, reason) for peer, reason in failed.items())
        )

    # --- repeating ----------------------------------------------------------------------------

    async def offer(self, peer: PeerId) -> None:
        """Give a peer that has just (re)appeared the records of ours it is responsible for.

        A peer that was there at all announcements since its last offer is not bothered again.
        """
        since = self._offered.get(peer)
        if since is not None and trio.current_time() - since < self._settings.republish:
            return
        tally = _Tally({})
        own = self._chunks.own()
        mine = self._responsible(peer, own, chunk_position)
        for start in range(0, len(mine), MAX_KEYS_PER_MESSAGE):
            batch = [(digest, own[digest]) for digest in mine[start : start + MAX_KEYS_PER_MESSAGE]]
            tally.stored.update({digest: 0 for digest, _ in batch})
            await self._announce_to(peer, batch, tally)
            if peer in tally.failed:
                return
            await trio.sleep(_OFFER_PAUSE)
        if await self._offer_manifests(peer):
            self._offered[peer] = trio.current_time()
            self._counters.add("offers_made")

    async def _offer_manifests(self, peer: PeerId) -> bool:
        digests = self._responsible(peer, self._manifests.own_digests(), manifest_position)
        for digest in digests[-_OFFERED_MANIFESTS:]:
            value = self._manifests.own_value(digest)
            if value is None:
                continue
            try:
                await self._client.put_manifest(peer, digest, value)
            except MeshError:
                self._counters.add("offers_failed")
                return False
        return True

    def _responsible(
        self, peer: PeerId, digests: Iterable[bytes], position: Callable[[bytes], int]
    ) -> list[bytes]:
        """Those of `digests` for which `peer` is among the k nearest."""
        index, k = self._locator.index(), self._settings.k
        return [d for d in digests if index.is_among_closest(peer, position(d), k)]

    def _forget_offers_except(self, reached: set[PeerId]) -> None:
        self._offered = {p: since for p, since in self._offered.items() if p in reached}

    async def repeat(self, stretch: int, stretches: int) -> None:
        """Announce and store again our records in one of equal `stretches` of the keyspace."""

        def due(target: int) -> bool:
            return target * stretches >> BITS == stretch

        own = self._chunks.own()
        held = {digest: size for digest, size in own.items() if due(chunk_position(digest))}
        if held:
            await self.spread(held)
        for digest in self._manifests.own_digests():
            value = self._manifests.own_value(digest)
            if value is not None and due(manifest_position(digest)):
                await self.spread_manifest(digest, value)
        self._counters.add("keys_repeated", len(held))
