"""Saying again what is ours: to a peer that comes, and to everybody on schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from .context import DhtContext
from .keyspace import BITS, chunk_key, chunk_position, position
from .locator import Locator
from .mailboxes import Mailboxes
from .own_record import OwnRecord
from .peer_id import PeerId
from .publisher import Publisher, Tally
from .records import ChunkRecords
from .settings import MAX_KEYS_PER_MESSAGE
from .trace import Traces
from .value_publisher import ValuePublisher
from .values import ValueStore

_OFFERED_VALUES = 2_000
_OFFER_PAUSE = 0.2
_REPEATED = "repeat"


class Repeater:
    """Knows which peers have all of ours they are responsible for."""

    def __init__(
        self,
        context: DhtContext,
        traces: Traces,
        locator: Locator,
        publisher: Publisher,
        value_publisher: ValuePublisher,
        chunks: ChunkRecords,
        values: ValueStore,
        mailboxes: Mailboxes,
        own_record: OwnRecord | None,
    ) -> None:
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._traces = traces
        self._locator = locator
        self._publisher = publisher
        self._value_publisher = value_publisher
        self._chunks = chunks
        self._values = values
        self._mailboxes = mailboxes
        self._own_record = own_record
        self._offered: dict[PeerId, float] = {}
        """Peers that have all they are responsible for, and since when (trio time)."""
        publisher.missed = self.missed

    def missed(self, failed: Iterable[PeerId]) -> None:
        """An announcement did not reach `failed`, nor those who were not there for it."""
        reached = self._locator.everyone() - set(failed)
        self._offered = {p: since for p, since in self._offered.items() if p in reached}

    async def offer(self, peer: PeerId) -> bool:
        """Give a peer that has just (re)appeared the records of ours it is responsible for.

        A peer that was there at all announcements since its last offer is not bothered again.
        Returns whether it has them all.
        """
        since = self._offered.get(peer)
        if since is not None and trio.current_time() - since < self._settings.republish:
            return True
        if not await self._offer_chunks(peer) or not await self._offer_values(peer):
            return False
        self._offered[peer] = trio.current_time()
        self._counters.add("offers_made")
        return True

    async def _offer_chunks(self, peer: PeerId) -> bool:
        own = self._chunks.own()
        mine = self._responsible(peer, own, chunk_position)
        if not mine:
            return True
        tally = Tally({})
        trace = self._traces.begin("offer", chunk_key(mine[0]), len(mine), upkeep=True)
        try:
            for start in range(0, len(mine), MAX_KEYS_PER_MESSAGE):
                digests = mine[start : start + MAX_KEYS_PER_MESSAGE]
                tally.stored.update(dict.fromkeys(digests, 0))
                await self._publisher.announce_to(peer, digests, own, tally, trace)
                if peer in tally.failed:
                    return False
                await trio.sleep(_OFFER_PAUSE)
        finally:
            trace.close(found=sum(tally.stored.values()))
        return True

    async def _offer_values(self, peer: PeerId) -> bool:
        values = self._valid_values()
        mine = self._responsible(peer, values, position)
        letters = [n for n in self._mailboxes.own() if self._responsible(peer, [n.key], position)]
        given = [(key, values[key]) for key in mine]
        given += [(notice.key, notice.encoded) for notice in letters]
        for key, value in given[-_OFFERED_VALUES:]:
            if not await self._value_publisher.give(peer, key, value):
                self._counters.add("offers_failed")
                return False
        return True

    def _valid_values(self) -> dict[bytes, bytes]:
        """Our own values, without those that somebody has replaced by a newer one."""
        now = self._wall_clock()
        current = {key: self._values.get(key, now) for key in self._values.own_keys()}
        return {
            key: found[0]
            for key, found in current.items()
            if found is not None and found[0] == self._values.own_value(key)
        }

    def _responsible(
        self, peer: PeerId, keys: Iterable[bytes], position_of: Callable[[bytes], int]
    ) -> list[bytes]:
        """Those of `keys` for which `peer` is among the k nearest."""
        wanted = list(keys)
        if not wanted:
            return []
        index, k = self._locator.index_with(peer), self._settings.k
        return [key for key in wanted if index.is_among_closest(peer, position_of(key), k)]

    async def repeat(self, stretch: int, stretches: int) -> None:
        """Announce and store again our records in one of equal `stretches` of the keyspace."""

        def due(target: int) -> bool:
            return target * stretches >> BITS == stretch

        own = self._chunks.own()
        held = {digest: size for digest, size in own.items() if due(chunk_position(digest))}
        if held:
            report = await self._publisher.spread(held, upkeep=True)
            self.missed(failure.peer for failure in report.failed)
        if self._own_record is not None and due(self._own_record.position):
            self._own_record.renew()
        now = self._wall_clock()
        for key, value in self._valid_values().items():
            if due(position(key)):
                await self._value_publisher.spread(_REPEATED, key, value, upkeep=True)
        for notice in self._mailboxes.own():
            if due(position(notice.key)) and notice.expires > now:
                key, value = notice.key, notice.encoded
                await self._value_publisher.spread(_REPEATED, key, value, upkeep=True)
        self._counters.add("keys_repeated", len(held))
