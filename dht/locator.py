"""Which peers are responsible for which keys: the k nearest, for thousands of keys at once.

A lookup per key would cost dozens of requests for each of a thousand keys. Instead nodes tell what
they know around themselves (`Near`): a node whose buckets are not full from some depth on believes
to know every peer that shares that many bits with it. Such claims settle all keys under that prefix
at once, so a mesh of N nodes is charted in some 3 N / k requests, and the chart is kept for some
minutes. A node that has no full bucket (any mesh smaller than k) knows everybody: no request.

A member may lie. So a key is settled by two claims, of two networks where these are public, and
those who have dealt with us are asked before others. Whoever is named near a key and has not dealt
with us has to answer first; a claim of whose names many do not is void. What colluders can still do
is crowd around a key: then a wider circle is asked, and keeps the record too, see
`PeerIndex.responsible`.

With a complete map of the members (`gossip`) nothing is asked at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import trio

from .context import DhtContext
from .fanout import Fanout
from .gossip import Gossip
from .keyspace import BITS, PeerIndex, common_bits, peer_position
from .peer_id import PeerId
from .records_wire import MAX_TARGETS, Neighbours

_CLAIM_LIFETIME = 600.0
_MAX_CLAIMS = 4096
_CLAIMS_PER_KEY = 2
_NEAREST_ASKED = 4
_MAX_ASKED = 4096
"""Of one chart; 10,000 members take about 1,500."""
_SHALLOWER = 1
"""By so many bits at most a claim counts as wider than ours would be."""
_PARALLEL_PINGS = 64
_MOST_PINGS = 128
_ANSWER_WITHIN = 0.5
_TIME_TO_ANSWER = 0.25
_LEAST_WAIT = 0.1
_MAX_SILENT = 3
_PARALLEL = 32


@dataclass(frozen=True, slots=True)
class _Claim:
    """At time `at`, `peer` believed `known` to hold all peers sharing `bits` bits with it."""

    peer: PeerId
    origin: str | PeerId
    """Its network when that is public: all claims of one network are one."""
    bits: int
    known: frozenset[PeerId]
    at: float


def _prefix(target: int, bits: int) -> int:
    return target >> (BITS - bits)


class Locator:
    """Knows, or finds out, who is responsible for keys."""

    def __init__(self, context: DhtContext, gossip: Gossip | None = None) -> None:
        self._own = context.own
        self._nursery = context.nursery
        self._contacts = context.contacts
        self._client = context.client
        self._settings = context.settings
        self._counters = context.counters
        self._gossip = gossip
        self._claims: dict[PeerId, _Claim] = {}
        self._silent: dict[PeerId, float] = {}
        """Claimed peers that did not answer when asked, and until when they are left out."""
        self._void: dict[PeerId, float] = {}
        """Peers whose claims are worth nothing, and until when."""

    @property
    def knows_all(self) -> bool:
        """Whether the full map is believed complete, so that locating takes no request."""
        return self._gossip is not None and self._gossip.complete

    async def locate(self, targets: Iterable[int]) -> dict[int, list[PeerId]]:
        """For each position the k nearest live peers, nearest first; we may be one of them."""
        wanted = list(targets)
        if self.knows_all:
            return self.known(wanted)
        await self._chart(wanted)
        patience = _ANSWER_WITHIN
        while True:
            located, claims = self.known(wanted), len(self._claims)
            unproven = self._unproven(located.values())
            if not unproven or patience <= 0:
                return located
            began = trio.current_time()
            await self._verify(unproven, began + patience)
            patience -= max(_LEAST_WAIT, trio.current_time() - began)
            if len(self._claims) < claims:
                # Some were void: hear others.
                await self._chart(wanted)

    def known(self, targets: Iterable[int]) -> dict[int, list[PeerId]]:
        """As `locate`, from what is known now."""
        index, k, size = self.index(), self._settings.k, self.mesh_size
        return {target: index.responsible(target, k, size) for target in targets}

    @property
    def mesh_size(self) -> float:
        """How many members there are: counted with a complete map, else estimated."""
        if self._gossip is not None and self._gossip.complete:
            return 1.0 + len(self._gossip.map.members)
        return self._contacts.table.estimated_size()

    def everyone(self) -> set[PeerId]:
        """All peers taken into account, without ourselves and those gone or believed down.

        The table adds to the map those that speak only the standard protocol.
        """
        pool, knows_all = set(self._contacts.table), self.knows_all
        if not knows_all:
            pool |= self._claimed()
        if self._gossip is not None:
            is_gone, is_met = self._gossip.map.is_gone, self._contacts.is_met
            pool = {p for p in pool if not is_gone(p) and (is_met(p) or not knows_all)}
            pool |= self._gossip.map.members
        now, health = trio.current_time(), self._contacts.health
        return {peer for peer in pool if not health.is_down(peer, now)} - {self._own}

    def _claimed(self) -> set[PeerId]:
        """Peers that claims name, without those that were asked in vain."""
        out: set[PeerId] = set()
        for claim in self._fresh():
            out.add(claim.peer)
            out |= claim.known
        is_met = self._contacts.is_met
        return {peer for peer in out if peer not in self._silent or is_met(peer)}

    def down(self) -> list[PeerId]:
        """Members of the routing table that nobody waits for at present."""
        return [peer for peer in self._contacts.table if self._contacts.is_down(peer)]

    @property
    def knows_everybody(self) -> bool:
        """Whether `everyone` is the whole mesh, so that there is nothing to walk to."""
        return self.knows_all or self._contacts.table.complete_bits() == 0

    def index(self) -> PeerIndex:
        """All peers taken into account, ourselves included."""
        return PeerIndex([*self.everyone(), self._own])

    async def _chart(self, targets: Sequence[int]) -> None:
        """Ask around until each target lies under enough claims, or nobody nearer is left."""
        asked: set[PeerId] = set()
        while len(asked) < _MAX_ASKED:
            if self._contacts.table.complete_bits() == 0:
                return
            picks = self._pick(targets, asked)
            if not picks:
                return
            asked |= set(picks)
            await self._ask_all(picks)
        self._counters.add("charts_unfinished")

    def _pick(self, targets: Sequence[int], asked: set[PeerId]) -> dict[PeerId, list[int]]:
        """Whom to ask next, about which targets: near ones, one per stretch of the keyspace."""
        index = self.index()
        own_bits = self._contacts.table.complete_bits()
        covered = Counter({(own_bits, _prefix(peer_position(self._own), own_bits)): 1})
        claims_made = {
            (c.bits, _prefix(peer_position(c.peer), c.bits), c.origin) for c in self._fresh()
        }
        covered.update((bits, prefix) for bits, prefix, _ in claims_made)
        depths = {bits for bits, _ in covered}
        now = trio.current_time()
        void = {peer for peer, until in self._void.items() if until > now}
        passed = asked | self._claims.keys() | void
        picks: dict[PeerId, list[int]] = {}
        for target in targets:
            claims = sum(covered[bits, _prefix(target, bits)] for bits in depths)
            candidates = self._candidates(index, target, settled=claims >= _CLAIMS_PER_KEY)
            if not candidates:
                continue
            # Depths of claims differ little between nodes, so our own predicts theirs.
            served = [p for p in picks if common_bits(peer_position(p), target) >= own_bits]
            if served:
                if len(picks[served[0]]) < MAX_TARGETS:
                    picks[served[0]].append(target)
                continue
            fresh = [p for p in candidates if p not in passed]
            if fresh and len(picks) < _PARALLEL:
                picks[fresh[0]] = [target]
        return picks

    def _candidates(self, index: PeerIndex, target: int, *, settled: bool) -> list[PeerId]:
        """Who could make a claim about `target`, the best first; none when there are enough."""
        is_met, k = self._contacts.is_met, self._settings.k
        if not settled:
            near = [p for p in index.closest(target, _NEAREST_ASKED + 1) if p != self._own]
            return sorted(near, key=lambda peer: not is_met(peer))
        # Where peers crowd around a key, those farther away are asked as well.
        wide = index.responsible(target, k, self.mesh_size)[k:]
        enough = sum(peer in self._claims for peer in wide) >= _CLAIMS_PER_KEY
        return [] if enough else sorted(wide, key=lambda peer: not is_met(peer))

    def _unproven(self, located: Iterable[Sequence[PeerId]]) -> list[PeerId]:
        """Those of `located` that never dealt with us."""
        is_met = self._contacts.is_met
        peers = {peer for near in located for peer in near} - {self._own}
        return sorted(peer for peer in peers if not is_met(peer))

    async def _verify(self, unproven: Sequence[PeerId], until: float) -> None:
        """Have peers answer until the (trio) time `until`; leave out those that do not.

        Among thousands not all can be asked in that time: those that were not keep their place, as
        whatever they are wanted for next finds out.
        """
        asked = unproven[:_MOST_PINGS]
        self._counters.add("claimed_peers_asked", len(asked))
        replies: Fanout[None] = Fanout(self._nursery, self._counters)
        limit = trio.CapacityLimiter(_PARALLEL_PINGS)
        begun: dict[PeerId, float] = {}

        async def ping(peer: PeerId) -> None:
            async with limit:
                begun[peer] = trio.current_time()
                await self._client.ping(peer)

        try:
            for peer in asked:
                replies.start(peer, partial(ping, peer), _ANSWER_WITHIN)
            while replies.pending and await replies.next(until) is not None:
                pass
        finally:
            replies.close()
        had_time = trio.current_time() - _TIME_TO_ANSWER
        is_met = self._contacts.is_met
        self._doubt([p for p in asked if not is_met(p) and begun.get(p, inf) <= had_time])

    def _doubt(self, silent: Sequence[PeerId]) -> None:
        """Leave out peers that did not answer, and claims that name mostly such."""
        now = trio.current_time()
        self._silent = {p: until for p, until in self._silent.items() if until > now}
        self._silent.update(dict.fromkeys(silent, now + _CLAIM_LIFETIME))
        for claim in self._fresh():
            named = sum(peer in self._silent for peer in claim.known)
            if named > _MAX_SILENT and 3 * named > len(claim.known):
                self._counters.add("claims_void")
                del self._claims[claim.peer]
                self._void[claim.peer] = now + _CLAIM_LIFETIME

    async def _ask_all(self, picks: dict[PeerId, list[int]]) -> None:
        """Ask all at once; late ones are left behind, and heard whenever they answer."""
        replies: Fanout[None] = Fanout(self._nursery, self._counters)
        try:
            for peer, targets in picks.items():
                late_after = self._contacts.health.late_after(peer)
                replies.start(peer, partial(self._ask, peer, targets), late_after)
            while replies.pending:
                if await replies.next(max(replies.pending.values())) is None:
                    return
        finally:
            replies.close()

    async def _ask(self, peer: PeerId, targets: Sequence[int]) -> None:
        self._counters.add("chart_requests")
        self._accept(peer, await self._client.near(peer, targets))

    def _accept(self, peer: PeerId, answer: Neighbours) -> None:
        if self._void.get(peer, 0.0) > trio.current_time():
            return
        known = self._contacts.learn(answer.peers)
        self._claims.pop(peer, None)
        while len(self._claims) >= _MAX_CLAIMS:
            self._claims.pop(next(iter(self._claims)))
        # Peers outside its prefix are hints rather than part of the claim, but worth knowing.
        members = frozenset([*known, peer])
        origin = self._contacts.group(peer) or peer
        # Depths differ little between honest nodes. Who claims to know half of a large mesh would,
        # if it lied, settle the keys of all others with it.
        bits = max(answer.bits, self._contacts.table.complete_bits() - _SHALLOWER)
        self._claims[peer] = _Claim(peer, origin, bits, members, trio.current_time())

    def _fresh(self) -> list[_Claim]:
        oldest = trio.current_time() - _CLAIM_LIFETIME if self._claims else inf
        stale = [peer for peer, claim in self._claims.items() if claim.at < oldest]
        for peer in stale:
            del self._claims[peer]
        return list(self._claims.values())
