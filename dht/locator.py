"""Which peers are responsible for which keys: the k nearest, for thousands of keys at once.

A lookup per key would cost dozens of requests for each of a thousand keys. Instead nodes tell what
they know around themselves (`Near`): a node whose buckets are not full from some depth on believes
to know every peer that shares that many bits with it. Such claims settle all keys under that prefix
at once, so a mesh of N nodes is charted in some 3 N / k requests, and the chart is kept for some
minutes. A node that has no full bucket (any mesh smaller than k) knows everybody: no request.

A member may lie: `claims` says what is believed. What colluders can still do is crowd around a key:
then a wider circle is asked, and keeps the record too, see `PeerIndex.responsible`.

With a complete map of the members (`gossip`) nothing is asked at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from math import inf

import trio

from .claims import Claim, Claims, prefix
from .context import DhtContext
from .fanout import Fanout
from .gossip import Gossip
from .keyspace import PeerIndex, common_bits, peer_position
from .peer_id import PeerId
from .records_wire import MAX_TARGETS, Neighbours

_CLAIMS_PER_KEY = 2
_NEAREST_ASKED = 8
_MAX_ASKED = 4096
"""Of one chart; 10,000 members take about 1,500."""
_SHALLOWER = 1
"""By so many bits at most a claim counts as wider than ours would be."""
_VANTAGES = 8
_ASKED_WHEN_IN_DOUBT = 8
_PARALLEL_PINGS = 64
_MOST_PINGS = 128
_ANSWER_WITHIN = 0.5
_TIME_TO_ANSWER = 0.25
_LEAST_WAIT = 0.1
_PARALLEL = 32
_RECENT = 1.0


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
        self._rng = context.rng
        self._claims = Claims(context.own, context.contacts.is_met)
        self._recent = -inf, PeerIndex([])

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
            index, began = self.index(), trio.current_time()
            located = self._responsible(index, wanted)
            # What claims contradict each other in comes first: it tells who lies.
            doubtful = [*self._claims.disputed(index, began), *self._unproven(located)]
            asking = bool(doubtful) and patience > 0
            lost = await self._verify(dict.fromkeys(doubtful), began + patience) if asking else 0
            patience -= max(_LEAST_WAIT, trio.current_time() - began)
            if lost + self._doubt(index):
                # Hear others.
                await self._chart(wanted)
            elif not asking:
                return located

    def known(self, targets: Iterable[int]) -> dict[int, list[PeerId]]:
        """As `locate`, from what is known now."""
        return self._responsible(self.index(), targets)

    def _responsible(self, index: PeerIndex, targets: Iterable[int]) -> dict[int, list[PeerId]]:
        k, size = self._settings.k, self.mesh_size
        return {target: index.responsible(target, k, size) for target in targets}

    @property
    def mesh_size(self) -> float:
        """How many members there are: counted with a complete map, else estimated."""
        if self._gossip is not None and self._gossip.complete:
            return 1.0 + len(self._gossip.map.members)
        own_estimate = self._contacts.table.estimated_size()
        return self._claims.size(own_estimate, trio.current_time())

    def everyone(self) -> set[PeerId]:
        """All peers taken into account, without ourselves and those gone or believed down.

        The table adds to the map those that speak only the standard protocol.
        """
        pool, knows_all = set(self._contacts.table), self.knows_all
        if not knows_all:
            pool |= self._claims.named(trio.current_time())
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

    def index_with(self, peer: PeerId) -> PeerIndex:
        """As `index`, up to a second old unless `peer` is missing in it.

        Peers come by the hundred, and each would cost an index of the whole mesh.
        """
        now = trio.current_time()
        made, index = self._recent
        if now > made + _RECENT or peer not in index:
            index = self.index()
            self._recent = now, index
        return index

    async def _chart(self, targets: Sequence[int]) -> None:
        """Ask around until each target lies under enough claims, or nobody nearer is left."""
        asked: set[PeerId] = set()
        while len(asked) < _MAX_ASKED:
            if self._contacts.table.complete_bits() == 0:
                return
            picks = self._pick(targets, asked)
            if not picks:
                return
            await self._ask_all(picks, {} if asked else self._vantages(picks))
            asked |= set(picks)
        self._counters.add("charts_unfinished")

    def _vantages(self, picks: dict[PeerId, list[int]]) -> dict[PeerId, list[int]]:
        """Members of our table at all distances from what is sought, chosen by chance.

        Nearest peers name nearer ones, so whoever has many peers near a key is soon the only one
        heard; not so by those that look at it from elsewhere. They also tell how dense the mesh is.
        """
        targets = [target for group in picks.values() for target in group]
        shells: dict[int, list[PeerId]] = {}
        for peer in self._contacts.table:
            if peer not in picks and peer not in self._claims and not self._contacts.is_down(peer):
                at = common_bits(peer_position(peer), targets[0])
                shells.setdefault(at, []).append(peer)
        chosen = [self._rng.choice(shells[at]) for at in sorted(shells)][:_VANTAGES]
        return dict.fromkeys(chosen, targets[:MAX_TARGETS])

    def _pick(self, targets: Sequence[int], asked: set[PeerId]) -> dict[PeerId, list[int]]:
        """Whom to ask next, about which targets: near ones, one per stretch of the keyspace."""
        index, now = self.index(), trio.current_time()
        own_bits = self._contacts.table.complete_bits()
        covered = self._claims.over(now)
        covered[own_bits, prefix(peer_position(self._own), own_bits)] += 1
        depths = {bits for bits, _ in covered}
        passed = asked | self._claims.heard(now)
        trusted = {*self._contacts.table, *self._claims.vouched(now)}
        size, doubt = self.mesh_size, self._claims.any_doubted
        is_met, picks = self._contacts.is_met, dict[PeerId, list[int]]()
        for target in targets:
            claims = sum(covered[bits, prefix(target, bits)] for bits in depths)
            # Where peers crowd around a key, those farther away are asked as well.
            wide = index.responsible(target, self._settings.k, size)[self._settings.k :]
            near = index.closest(target, _NEAREST_ASKED) if claims < _CLAIMS_PER_KEY else []
            fresh = [peer for peer in [*wide, *near] if peer not in passed and peer != self._own]
            if not fresh:
                continue
            # Depths of claims differ little between nodes, so our own predicts theirs.
            served = [p for p in picks if common_bits(peer_position(p), target) >= own_bits]
            if served:
                if len(picks[served[0]]) < MAX_TARGETS:
                    picks[served[0]].append(target)
                continue
            fresh.sort(key=lambda peer: (peer not in trusted, not is_met(peer)))
            at_once = _ASKED_WHEN_IN_DOUBT if doubt or wide else 1
            for peer in fresh[: min(at_once, _PARALLEL - len(picks))]:
                picks[peer] = [target]
        return picks

    def _unproven(self, located: dict[int, list[PeerId]]) -> list[PeerId]:
        """Those of `located` that never dealt with us."""
        is_met = self._contacts.is_met
        peers = {peer for near in located.values() for peer in near} - {self._own}
        return sorted(peer for peer in peers if not is_met(peer))

    def _doubt(self, index: PeerIndex) -> int:
        """Let claims settle nothing that leave out whom we know; returns how many."""
        doubted = self._claims.contradict(index, trio.current_time())
        self._counters.add("claims_doubted", doubted)
        return doubted

    async def _verify(self, unproven: Iterable[PeerId], until: float) -> int:
        """Have peers answer until the (trio) time `until`; leave out those that do not.

        Returns how many claims are void now. Among thousands not all can be asked in that time:
        those that were not keep their place, as whatever they are wanted for next finds out.
        """
        asked = list(islice(unproven, _MOST_PINGS))
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
        now, is_met = trio.current_time(), self._contacts.is_met
        had_time = now - _TIME_TO_ANSWER
        silent = [p for p in asked if not is_met(p) and begun.get(p, inf) <= had_time]
        void = self._claims.silence(silent, now)
        self._counters.add("claims_void", void)
        return void

    async def _ask_all(
        self, picks: dict[PeerId, list[int]], by_chance: dict[PeerId, list[int]]
    ) -> None:
        """Ask all at once; late ones are left behind, and heard whenever they answer."""
        replies: Fanout[None] = Fanout(self._nursery, self._counters)
        try:
            for peer, targets in (picks | by_chance).items():
                late_after = self._contacts.health.late_after(peer)
                ask = partial(self._ask, peer, targets, by_chance=peer in by_chance)
                replies.start(peer, ask, late_after)
            while replies.pending:
                if await replies.next(max(replies.pending.values())) is None:
                    return
        finally:
            replies.close()

    async def _ask(self, peer: PeerId, targets: Sequence[int], *, by_chance: bool) -> None:
        self._counters.add("chart_requests")
        self._accept(peer, await self._client.near(peer, targets), by_chance=by_chance)

    def _accept(self, peer: PeerId, answer: Neighbours, *, by_chance: bool) -> None:
        # Peers outside its prefix are hints rather than part of the claim, but worth knowing.
        known = frozenset([*self._contacts.learn(answer.peers), peer])
        origin = self._contacts.group(peer) or peer
        # Depths differ little between honest nodes. Who claims to know half of a large mesh would,
        # if it lied, settle the keys of all others with it.
        bits = max(answer.bits, self._contacts.table.complete_bits() - _SHALLOWER)
        claim = Claim(peer, origin, bits, known, trio.current_time(), by_chance)
        self._claims.add(claim)
