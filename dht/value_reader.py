"""Reading values: one sound manifest is enough, but what can change is asked of several peers.

Everything that comes in has been checked by the validators. Of a name or a peer the newest record
among those of a quorum is believed, and peers that were found to keep an older one, or none, are
given it (read repair).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import trio

from ..errors import MembershipError, PeerError
from .client import FoundValue
from .context import DhtContext
from .kad_wire import PeerAddresses
from .keyspace import manifest_key, position
from .locator import Locator
from .mailboxes import Mailboxes
from .names import NameRecord, decode_name, name_key
from .notices import Notice, decode_bundle, notice_key
from .peer_id import PeerId
from .peer_record import PeerRecord, decode_record, peer_record_key
from .query import Ask, LookupResult, Plan, Queries
from .trace import QueryReport
from .value_publisher import ValuePublisher, wider_circle
from .values import ValueStore

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest, None when nobody who answered has it; `query` None: it was kept here."""

    value: bytes | None
    query: QueryReport | None


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """The newest record of a name, None when nobody has one.

    `agreed` of the `answered` peers that keep a record of the name gave this one; those that did
    not, and peers that should have had it, are being corrected.
    """

    record: NameRecord | None
    agreed: int
    answered: int
    query: QueryReport


@dataclass(frozen=True, slots=True)
class PeerRecordAnswer:
    """The newest record that a peer signed of itself; the numbers are as for a name."""

    record: PeerRecord | None
    agreed: int
    answered: int
    query: QueryReport


@dataclass(frozen=True, slots=True)
class NoticesAnswer:
    """Everything found for a recipient, oldest first; `answered` peers had any."""

    notices: tuple[Notice, ...]
    answered: int
    query: QueryReport


@dataclass(frozen=True, slots=True)
class _Newest:
    """What a quorum had under a key: the newest value, and how many gave it."""

    value: bytes | None
    agreed: int
    answered: int
    query: QueryReport


class ValueReader:
    """Finds values in the mesh."""

    def __init__(
        self,
        context: DhtContext,
        queries: Queries,
        locator: Locator,
        values: ValueStore,
        mailboxes: Mailboxes,
        publisher: ValuePublisher,
        realm: bytes,
    ) -> None:
        self._own = context.own
        self._nursery = context.nursery
        self._client = context.client
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._realm = realm
        self._queries = queries
        self._locator = locator
        self._values = values
        self._mailboxes = mailboxes
        self._publisher = publisher

    async def manifest(self, digest: bytes) -> ManifestAnswer:
        """The manifest named `digest`: from here, or from the first peer that has it."""
        key = manifest_key(digest)
        kept = self._values.get(key, self._wall_clock())
        if kept is not None:
            return ManifestAnswer(kept[0], None)
        result = await self._read("get_manifest", key, enough=1)
        found = result.value
        return ManifestAnswer(None if found is None else found.value, result.report)

    async def name(self, publisher: PeerId, name: str) -> NameAnswer:
        """The record of a name, as the newest of a quorum has it."""
        found = await self._newest("get_name", name_key(publisher, name))
        record = None if found.value is None else decode_name(found.value)
        return NameAnswer(record, found.agreed, found.answered, found.query)

    async def peer_record(self, peer: PeerId) -> PeerRecordAnswer:
        """What `peer` said of itself, as the newest of a quorum has it."""
        found = await self._newest("get_peer_record", peer_record_key(peer))
        record = None if found.value is None else decode_record(found.value, self._realm)
        return PeerRecordAnswer(record, found.agreed, found.answered, found.query)

    async def notices(self, recipient: PeerId) -> NoticesAnswer:
        """All notices for `recipient` that any of the responsible peers keeps."""
        key = notice_key(recipient)

        async def ask(peer: PeerId) -> tuple[list[Notice] | None, tuple[PeerAddresses, ...]]:
            return await self._client.get_notices(peer, key)

        result = await self._search("get_notices", key, ask, enough=2**31)
        now = self._wall_clock()
        found = {notice.id: notice for _, notices in result.values for notice in notices}
        if (bundle := self._mailboxes.bundle(key, now)) is not None:
            found |= {notice.id: notice for notice in decode_bundle(key, bundle)}
        valid = [notice for notice in found.values() if notice.expires > now]
        valid.sort(key=lambda notice: (notice.created, notice.id))
        return NoticesAnswer(tuple(valid), len(result.values), result.report)

    async def _newest(self, kind: str, key: bytes) -> _Newest:
        """Read what can change, and have those who gave an older one, or none, keep the newest."""
        result = await self._read(kind, key, enough=self._settings.quorum)
        here = self._values.get(key, self._wall_clock())
        candidates = [found for _, found in result.values]
        if here is not None:
            candidates.append(FoundValue(*here))
        newest = max(candidates, key=lambda found: found.checked.rank, default=None)
        if newest is None:
            return _Newest(None, 0, 0, result.report)
        holders = {peer for peer, found in result.values if found.value == newest.value}
        keepers = dict.fromkeys([*result.closest, *(peer for peer, _ in result.values)])
        stale = [peer for peer in keepers if peer not in holders]
        if stale:
            self._nursery.start_soon(self._correct, stale, key, newest.value)
        return _Newest(newest.value, len(holders), len(result.values), result.report)

    async def _read(self, kind: str, key: bytes, *, enough: int) -> LookupResult[FoundValue]:
        now = self._wall_clock()

        async def ask(peer: PeerId) -> tuple[FoundValue | None, tuple[PeerAddresses, ...]]:
            return await self._client.get_value(peer, key, now)

        return await self._search(kind, key, ask, enough)

    async def _search(self, kind: str, key: bytes, ask: Ask[_V], enough: int) -> LookupResult[_V]:
        """Ask the k nearest, and where these crowd around the key, those who keep it besides.

        Over disjoint paths, unless all members are known: then there is nothing to walk to.
        """
        target = position(key)
        asked = {self._own}

        async def noted(peer: PeerId) -> tuple[_V | None, tuple[PeerAddresses, ...]]:
            asked.add(peer)
            return await ask(peer)

        near = [p for p in self._locator.known([target])[target] if p != self._own]
        paths = 1 if self._locator.knows_everybody else self._settings.disjoint_paths
        result = await self._queries.run(key, noted, Plan(kind, enough, paths, near))
        if enough > 1 or not result.values:
            wider = wider_circle(self._locator, target, self._settings.k, result.closest)
            async with trio.open_nursery() as nursery:
                for peer in wider:
                    if peer not in asked:
                        nursery.start_soon(self._ask_besides, peer, ask, result.values)
        return result

    async def _ask_besides(
        self, peer: PeerId, ask: Ask[_V], values: list[tuple[PeerId, _V]]
    ) -> None:
        try:
            found, _ = await ask(peer)
        except (PeerError, MembershipError):
            return  # as in a walk, it is counted where requests are made
        if found is not None:
            values.append((peer, found))

    async def _correct(self, peers: list[PeerId], key: bytes, value: bytes) -> None:
        async def correct(peer: PeerId) -> None:
            if await self._publisher.give(peer, key, value):
                self._counters.add("values_repaired")

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(correct, peer)
