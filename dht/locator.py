"""Which peers are responsible for which keys: the k nearest, for thousands of keys at once.

A lookup per key would cost dozens of requests for each of a thousand keys. Instead nodes tell what
they know around themselves (`Near`): a node whose buckets are not full from some depth on believes
to know every peer that shares that many bits with it. Such a claim settles all keys under that
prefix at once, so a mesh of N nodes is charted in about 2 N / k requests, and the chart is kept for
some minutes. A node that has no full bucket (any mesh smaller than k) knows everybody: no request.

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
_MAX_CLAIMS = 1024
_CLAIMS_PER_KEY = 2
_NEAREST_ASKED = 3
_ROUNDS = 10
_PARALLEL = 10


@dataclass(frozen=True, slots=True)
class _Claim:
    """At time `at`, `peer` believed `known` to hold all peers sharing `bits` bits with it."""

    peer: PeerId
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

    @property
    def knows_all(self) -> bool:
        """Whether the full map is believed complete, so that locating takes no request."""
        return self._gossip is not None and self._gossip.complete

    async def locate(self, targets: Iterable[int]) -> dict[int, list[PeerId]]:
        """For each position the k nearest live peers, nearest first; we may be one of them."""
        wanted = list(targets)
        if not self.knows_all:
            await self._chart(wanted)
        return self.known(wanted)

    def known(self, targets: Iterable[int]) -> dict[int, list[PeerId]]:
        """As `locate`, from what is known now."""
        index = self.index()
        return {target: index.closest(target, self._settings.k) for target in targets}

    def everyone(self) -> set[PeerId]:
        """All peers taken into account, without ourselves and those gone or believed down.

        The table adds to the map those that speak only the standard protocol.
        """
        pool, knows_all = set(self._contacts.table), self.knows_all
        if not knows_all:
            for claim in self._fresh():
                pool |= claim.known
        if self._gossip is not None:
            is_gone, is_met = self._gossip.map.is_gone, self._contacts.is_met
            pool = {p for p in pool if not is_gone(p) and (is_met(p) or not knows_all)}
            pool |= self._gossip.map.members
        now, health = trio.current_time(), self._contacts.health
        return {peer for peer in pool if not health.is_down(peer, now)} - {self._own}

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
        for _ in range(_ROUNDS):
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
        covered.update((c.bits, _prefix(peer_position(c.peer), c.bits)) for c in self._fresh())
        depths = {bits for bits, _ in covered}
        picks: dict[PeerId, list[int]] = {}
        for target in targets:
            claims = sum(covered[bits, _prefix(target, bits)] for bits in depths)
            if claims >= _CLAIMS_PER_KEY:
                continue
            # Depths of claims differ little between nodes, so our own predicts theirs.
            served = [p for p in picks if common_bits(peer_position(p), target) >= own_bits]
            if served:
                if len(picks[served[0]]) < MAX_TARGETS:
                    picks[served[0]].append(target)
                continue
            near = index.closest(target, _NEAREST_ASKED + 1)
            candidates = [p for p in near if p != self._own][:_NEAREST_ASKED]
            fresh = [p for p in candidates if p not in asked and p not in self._claims]
            if fresh and len(picks) < _PARALLEL:
                picks[fresh[0]] = [target]
        return picks

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
        known = self._contacts.learn(answer.peers)
        self._claims.pop(peer, None)
        while len(self._claims) >= _MAX_CLAIMS:
            self._claims.pop(next(iter(self._claims)))
        # Peers outside its prefix are hints rather than part of the claim, but worth knowing.
        members = frozenset([*known, peer])
        self._claims[peer] = _Claim(peer, answer.bits, members, trio.current_time())

    def _fresh(self) -> list[_Claim]:
        oldest = trio.current_time() - _CLAIM_LIFETIME if self._claims else inf
        stale = [peer for peer, claim in self._claims.items() if claim.at < oldest]
        for peer in stale:
            del self._claims[peer]
        return list(self._claims.values())
