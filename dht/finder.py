"""Who holds these chunks? Asks as few peers as needed, in batches, and never waits for a late one.

Every one of the k responsible peers should know every holder, so the first wave asks three of them
per digest, the same few fast ones for as many digests as possible. What they leave open goes to all
other responsible peers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from .context import DhtContext
from .fanout import Fanout
from .kad_wire import PeerAddresses
from .keyspace import chunk_key, chunk_position
from .locator import Locator
from .patience import Patience
from .peer_id import PeerId
from .records import ChunkRecord, ChunkRecords
from .records_wire import Found
from .settings import MAX_KEYS_PER_MESSAGE
from .trace import QueryReport, Trace, Traces

_FIRST_WAVE = 3
_HOLDERS_ASKED_FOR = 8
_UNKNOWN_RTT = 1.0
_LATE_AFTER = 0.5
_PATIENCE = 1.4
_PATIENCE_WITH_SOME = 0.25

_Answers = Fanout[list[tuple[Sequence[bytes], Found]]]


@dataclass(frozen=True, slots=True)
class ChunksAnswer:
    """Per digest everybody who holds the chunk, likely live peers first."""

    holders: dict[bytes, list[ChunkRecord]]
    query: QueryReport


class _Search:
    """What one call has found so far, and whom it asked."""

    def __init__(self, digests: Iterable[bytes], enough: int) -> None:
        self.found: dict[bytes, dict[PeerId, ChunkRecord]] = {digest: {} for digest in digests}
        self.asked: set[tuple[PeerId, bytes]] = set()
        self._enough = enough
        self._doubtful: set[PeerId] = set()

    def add(self, digest: bytes, record: ChunkRecord, *, doubtful: bool) -> None:
        known = self.found[digest].get(record.peer)
        if known is None or known.expires < record.expires:
            self.found[digest][record.peer] = record
        if doubtful:
            self._doubtful.add(record.peer)

    def open(self) -> list[bytes]:
        """Digests without enough holders that are believed to be alive."""
        return [
            digest
            for digest, holders in self.found.items()
            if sum(1 for peer in holders if peer not in self._doubtful) < self._enough
        ]

    @property
    def something_everywhere(self) -> bool:
        return all(any(p not in self._doubtful for p in held) for held in self.found.values())


class Finder:
    """Batched lookups of chunk records."""

    def __init__(
        self,
        context: DhtContext,
        traces: Traces,
        locator: Locator,
        chunks: ChunkRecords,
    ) -> None:
        self._own = context.own
        self._host = context.host
        self._nursery = context.nursery
        self._contacts = context.contacts
        self._traces = traces
        self._locator = locator
        self._client = context.client
        self._chunks = chunks
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._patience = Patience(context.counters)

    async def find(self, digests: Sequence[bytes]) -> ChunksAnswer:
        """Holders of each digest, ourselves included; an empty list when nobody is known."""
        first = chunk_key(digests[0]) if digests else b""
        trace = self._traces.begin("find_chunks", first, len(digests))
        search = _Search(digests, self._settings.enough_holders)
        try:
            await self._find(search, trace)
        finally:
            report = trace.close(found=sum(1 for held in search.found.values() if held))
        holders = {d: self._ordered(held.values()) for d, held in search.found.items()}
        return ChunksAnswer(holders, report)

    async def _find(self, search: _Search, trace: Trace) -> None:
        self._counters.add("keys_sought", len(search.found))
        self._look_at_home(search)
        if wanted := search.open():
            position_of = {digest: chunk_position(digest) for digest in wanted}
            near = await self._locator.locate(position_of.values())
            responsible = {d: self._fastest_first(near[position_of[d]]) for d in wanted}
            await self._ask_around(search, responsible, trace)

    def _look_at_home(self, search: _Search) -> None:
        """Our own records. Old ones, or of peers that are down, settle nothing by themselves."""
        now = self._wall_clock()
        repeated_by = now + self._settings.record_ttl - 1.25 * self._settings.republish
        for digest in search.found:
            for record in self._chunks.holders(digest, now):
                stale = record.expires < repeated_by or self._contacts.is_down(record.peer)
                search.add(digest, record, doubtful=stale)

    def _fastest_first(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """A fixed order over all digests, so that few peers answer for many of them."""
        connected = self._host.connected_peers()

        def cost(peer: PeerId) -> tuple[bool, float]:
            rtt = self._contacts.health.rtt(peer)
            return peer not in connected, _UNKNOWN_RTT if rtt is None else rtt

        return sorted((peer for peer in peers if peer != self._own), key=cost)

    async def _ask_around(
        self, search: _Search, responsible: dict[bytes, list[PeerId]], trace: Trace
    ) -> None:
        answers: _Answers = Fanout(self._nursery, self._counters)
        try:
            self._start_wave(search, answers, responsible, _FIRST_WAVE, trace)
            await self._listen(search, answers, trio.current_time() + _LATE_AFTER)
            # Where peers crowd around a key, more than k are responsible for it.
            self._start_wave(search, answers, responsible, 2 * self._settings.k, trace)
            await self._listen(search, answers, trio.current_time() + _PATIENCE)
        finally:
            answers.close()

    def _start_wave(
        self,
        search: _Search,
        answers: _Answers,
        responsible: dict[bytes, list[PeerId]],
        width: int,
        trace: Trace,
    ) -> None:
        groups: dict[PeerId, list[bytes]] = {}
        for digest in search.open():
            for peer in responsible.get(digest, ())[:width]:
                if peer not in answers.pending and (peer, digest) not in search.asked:
                    search.asked.add((peer, digest))
                    groups.setdefault(peer, []).append(digest)
        for peer, digests in groups.items():
            answers.start(peer, partial(self._ask, peer, digests, trace), _LATE_AFTER)

    async def _listen(self, search: _Search, answers: _Answers, until: float) -> None:
        """Until all is settled, all have answered, or `until`; less when only more is missing."""
        some_by = min(until, trio.current_time() + _PATIENCE_WITH_SOME)
        while answers.pending and search.open():
            reply = await answers.next(some_by if search.something_everywhere else until)
            if reply is None:
                return
            for digests, found in reply.answer or ():
                self._merge(search, found, digests)

    async def _ask(
        self, peer: PeerId, digests: Sequence[bytes], trace: Trace
    ) -> list[tuple[Sequence[bytes], Found]]:
        out: list[tuple[Sequence[bytes], Found]] = []
        for start in range(0, len(digests), MAX_KEYS_PER_MESSAGE):
            batch = digests[start : start + MAX_KEYS_PER_MESSAGE]
            ask = partial(self._client.find, peer, batch, _HOLDERS_ASKED_FOR)
            with trace.asking(peer, keys=len(batch)):
                found = await self._patience.ask(peer, ask)
            # Here, so that even an answer that comes too late teaches addresses.
            self._contacts.learn(PeerAddresses(p.peer, p.addresses) for p in found.peers)
            out.append((batch, found))
        return out

    def _merge(self, search: _Search, found: Found, digests: Sequence[bytes]) -> None:
        now = self._wall_clock()
        for digest, holders in zip(digests, found.holders, strict=True):
            for holder in holders:
                known = found.peers[holder.peer]
                if known.peer == self._own:
                    # What we hold ourselves we know better than anybody.
                    continue
                expires = now + min(holder.ttl, self._settings.record_ttl)
                record = ChunkRecord(known.peer, holder.size, known.zone, expires)
                search.add(digest, record, doubtful=self._contacts.is_down(known.peer))

    def _ordered(self, records: Iterable[ChunkRecord]) -> list[ChunkRecord]:
        """Peers believed alive first, then the longest-lived records."""
        return sorted(records, key=lambda r: (self._contacts.is_down(r.peer), -r.expires))
