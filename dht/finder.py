"""Who holds these chunks? Asks as few peers as needed, in batches, and never waits for a late one.

Every one of the k responsible peers should know every holder. So the first wave asks three of them
per digest, of different public networks and the same few fast ones for as many digests as possible.
Two that know exactly the same live holders settle it, or three live holders that two of them name
each; what holders have told ourselves is one such voice, and proof. Peers of one public network are
one voice: nobody settles a digest alone, however many it invents. A digest without a live holder,
or about which they differ (a peer that came lately, one that lies), goes to all other responsible
peers at once. If no two of these know a holder, while some did not answer, peers farther away are
asked: holders themselves are among them, and newcomers that took the place of the silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import trio

from .context import DhtContext
from .fanout import Fanout
from .kad_wire import PeerAddresses
from .keyspace import chunk_key, chunk_position
from .locator import Locator
from .patience import Patience
from .peer_id import PeerId
from .records import ChunkRecord, ChunkRecords
from .records_wire import Found, Holder
from .settings import MAX_KEYS_PER_MESSAGE
from .trace import QueryReport, Trace, Traces

_FIRST_WAVE = 3
_WITNESSES = 2
_REACH = 3
"""How far is asked at most, in multiples of k, when those responsible do not answer."""
_HOLDERS_ASKED_FOR = 8
_UNKNOWN_RTT = 1.0
_LATE_AFTER = 0.5
_PATIENCE = 1.4
_PATIENCE_WITH_SOME = 0.25

_HOME = ""

_Voice = PeerId | str
"""Who counts once: a peer, all peers of one public network, or `_HOME`: our own memory."""
_Answers = Fanout[list[tuple[Sequence[bytes], Found]]]
_Testimony = tuple[dict[PeerId, ChunkRecord], frozenset[PeerId]]
"""What one peer knows of a chunk, and which of these holders are believed to be alive."""


@dataclass(frozen=True, slots=True)
class ChunksAnswer:
    """Per digest everybody who holds the chunk, likely live peers first."""

    holders: dict[bytes, list[ChunkRecord]]
    query: QueryReport


class _Search:
    """What one call has found so far, and whom it asked."""

    def __init__(self, digests: Iterable[bytes], enough: int) -> None:
        self.found: dict[bytes, dict[PeerId, ChunkRecord]] = {digest: {} for digest in digests}
        self.asked: dict[PeerId, set[bytes]] = {}
        self.unsettled: dict[bytes, None] = dict.fromkeys(self.found)
        self._enough = enough
        self._live: dict[bytes, frozenset[PeerId]] = dict.fromkeys(self.found, frozenset())
        self._said: dict[bytes, dict[_Voice, frozenset[PeerId]]] = {d: {} for d in self.found}
        """Per voice the live holders it names; under `_HOME` those that told ourselves."""
        self.voice_of: Callable[[PeerId], _Voice] = lambda peer: peer
        self.ours: set[bytes] = set()
        """What we hold ourselves, so that it is found even when nobody else has it."""

    def add(self, digest: bytes, records: Mapping[PeerId, ChunkRecord]) -> None:
        """Somebody, or our own memory, knows `records` of `digest`."""
        found = self.found[digest]
        if not found:
            found.update(records)
            return
        for peer, record in records.items():
            known = found.get(peer)
            if known is None or known.expires + 1 < record.expires:
                found[peer] = record

    def testify(self, digest: bytes, voice: _Voice, live: frozenset[PeerId]) -> None:
        """`voice` knows exactly `live` of the other holders that are believed to be alive."""
        said, known, ours = self._said[digest], self._live[digest], digest in self.ours
        said[voice] = said[voice] | live if voice in said else live
        if live != known:
            self._live[digest] = known = known | live
        # Whoever lacks one that others know is no witness: it came lately, or lies.
        witnesses = list(said.values()).count(known) if known or ours else 0
        missing = self._enough - ours
        if witnesses >= _WITNESSES or (
            len(known) >= missing and len(self.confirmed(digest)) >= missing
        ):
            self.unsettled.pop(digest, None)

    def confirmed(self, digest: bytes) -> frozenset[PeerId]:
        """Live holders that told ourselves, or that two voices name."""
        said = self._said[digest]
        named = confirmed = said.get(_HOME, frozenset())
        for live in said.values():
            confirmed |= named & live
            named |= live
        return confirmed

    def unsure(self) -> Iterator[bytes]:
        """Digests without a live holder, or with none but such as one voice alone names."""
        return (d for d in self.unsettled if d not in self.ours and not self.confirmed(d))


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
        holders = {digest: self._ordered(search, digest) for digest in search.found}
        return ChunksAnswer(holders, report)

    async def _find(self, search: _Search, trace: Trace) -> None:
        self._counters.add("keys_sought", len(search.found))
        self._look_at_home(search)
        if not search.unsettled:
            return
        position_of = {digest: chunk_position(digest) for digest in search.unsettled}
        near = await self._locator.locate(position_of.values())
        rank = self._fastest_first({peer for peers in near.values() for peer in peers})
        search.voice_of = self._voices(rank)
        responsible = {
            digest: sorted((p for p in near[at] if p in rank), key=rank.__getitem__)
            for digest, at in position_of.items()
        }
        answers: _Answers = Fanout(self._nursery, self._counters)
        try:
            await self._ask_around(search, answers, responsible, trace)
            await self._ask_beyond(search, answers, position_of, trace)
        finally:
            answers.close()

    def _look_at_home(self, search: _Search) -> None:
        """Our own records. Old ones, or of peers that are down, settle nothing by themselves."""
        now = self._wall_clock()
        repeated_by = now + self._settings.record_ttl - 1.25 * self._settings.republish
        is_down = lru_cache(maxsize=None)(self._contacts.is_down)
        for digest in search.found:
            records = {record.peer: record for record in self._chunks.holders(digest, now)}
            if records:
                search.add(digest, records)
                if self._own in records:
                    search.ours.add(digest)
                others = ((p, r) for p, r in records.items() if p != self._own)
                fresh = (p for p, r in others if r.expires >= repeated_by)
                if live := frozenset(peer for peer in fresh if not is_down(peer)):
                    search.testify(digest, _HOME, live)

    def _voices(self, responsible: Iterable[PeerId]) -> Callable[[PeerId], _Voice]:
        """Who counts as one. In a mesh that is all in one public network everybody counts."""
        network = lru_cache(maxsize=None)(self._contacts.group)
        if len({network(peer) for peer in responsible}) == 1:
            return lambda peer: peer
        return lambda peer: network(peer) or peer

    def _fastest_first(self, peers: Iterable[PeerId]) -> dict[PeerId, int]:
        """A fixed order over all digests, so that few peers answer for many of them."""
        connected = self._host.connected_peers()

        def cost(peer: PeerId) -> tuple[bool, float, PeerId]:
            rtt = self._contacts.health.rtt(peer)
            return peer not in connected, _UNKNOWN_RTT if rtt is None else rtt, peer

        in_order = sorted((peer for peer in peers if peer != self._own), key=cost)
        return {peer: number for number, peer in enumerate(in_order)}

    async def _ask_around(
        self,
        search: _Search,
        answers: _Answers,
        responsible: Mapping[bytes, Sequence[PeerId]],
        trace: Trace,
    ) -> None:
        def first(digest: bytes) -> list[PeerId]:
            chosen = dict[_Voice, PeerId]()
            peers = responsible[digest]
            for peer in peers:
                chosen.setdefault(search.voice_of(peer), peer)
                if len(chosen) == _FIRST_WAVE:
                    break
            return list(dict.fromkeys([*chosen.values(), *peers]))[:_FIRST_WAVE]

        self._start_wave(search, answers, {d: first(d) for d in search.unsettled}, trace)
        await self._listen(search, answers, trio.current_time() + _LATE_AFTER)
        self._start_wave(search, answers, {d: responsible[d] for d in search.unsettled}, trace)
        await self._listen(search, answers, trio.current_time() + _PATIENCE)

    async def _ask_beyond(
        self, search: _Search, answers: _Answers, position_of: Mapping[bytes, int], trace: Trace
    ) -> None:
        """No two who answered know a holder: ask thrice as far, if some did not answer."""
        unsure = list(search.unsure())
        if not unsure or not (answers.failed or answers.pending) or not self._locator.knows_all:
            return
        index, reach = self._locator.index(), _REACH * self._settings.k
        beyond = {
            digest: [p for p in index.closest(position_of[digest], reach) if p != self._own]
            for digest in unsure
        }
        self._counters.add("keys_sought_beyond", len(unsure))
        self._start_wave(search, answers, beyond, trace)
        await self._listen(search, answers, trio.current_time() + _PATIENCE)

    def _start_wave(
        self,
        search: _Search,
        answers: _Answers,
        wanted: Mapping[bytes, Sequence[PeerId]],
        trace: Trace,
    ) -> None:
        groups: dict[PeerId, list[bytes]] = {}
        for digest, peers in wanted.items():
            for peer in peers:
                groups.setdefault(peer, []).append(digest)
        for peer, digests in groups.items():
            asked = search.asked.setdefault(peer, set())
            new = [digest for digest in digests if digest not in asked]
            if new and peer not in answers.pending:
                asked.update(new)
                answers.start(peer, partial(self._ask, peer, new, trace), _LATE_AFTER)

    async def _listen(
        self,
        search: _Search,
        answers: _Answers,
        until: float,
    ) -> None:
        """Until all is settled, all have answered, or `until`; less when only more is missing."""
        some_by = min(until, trio.current_time() + _PATIENCE_WITH_SOME)
        while answers.pending and search.unsettled:
            reply = await answers.next(until if any(search.unsure()) else some_by)
            if reply is None:
                return
            for digests, found in reply.answer or ():
                self._merge(search, search.voice_of(reply.peer), found, digests)

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

    def _merge(
        self, search: _Search, voice: _Voice, found: Found, digests: Sequence[bytes]
    ) -> None:
        now = self._wall_clock()
        down = [self._contacts.is_down(known.peer) for known in found.peers]
        read: dict[tuple[Holder, ...], _Testimony] = {}
        for digest, holders in zip(digests, found.holders, strict=True):
            testimony = read.get(holders)
            if testimony is None:
                testimony = read[holders] = self._read(found, holders, down, now)
            records, live = testimony
            search.add(digest, records)
            search.testify(digest, voice, live)

    def _read(
        self, found: Found, holders: Sequence[Holder], down: Sequence[bool], now: float
    ) -> _Testimony:
        records: dict[PeerId, ChunkRecord] = {}
        live: set[PeerId] = set()
        for index, size, ttl in holders:
            known = found.peers[index]
            if known.peer == self._own:
                # What we hold ourselves we know better than anybody.
                continue
            expires = now + min(ttl, self._settings.record_ttl)
            records[known.peer] = ChunkRecord(known.peer, size, known.zone, expires)
            if not down[index]:
                live.add(known.peer)
        return records, frozenset(live)

    def _ordered(self, search: _Search, digest: bytes) -> list[ChunkRecord]:
        """Peers believed alive first, of these whom two voices name, then the longest-lived."""
        records = list(search.found[digest].values())
        if len(records) < 2:
            return records
        sure, is_down = search.confirmed(digest) | {self._own}, self._contacts.is_down
        return sorted(records, key=lambda r: (is_down(r.peer), r.peer not in sure, -r.expires))
