"""The decisions of one iterative lookup, without clock or network.

Kademlia (Maymounkov and Mazieres 2002, section 2.3): ask the nearest known peers for nearer ones,
`alpha` at a time, until the k nearest that live have answered. A lookup that makes no progress, or
meets a late peer, asks up to `max_alpha` at a time. A late peer gives up its place among the k to
the next candidate, and takes it back should it answer after all.

`Paths` runs several lookups that share no peer (S/Kademlia, Baumgart and Mies 2007, section 4.4):
peers that mislead one of them cannot mislead the others.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto

from .keyspace import peer_position
from .peer_id import PeerId

_MAX_ASKED = 160


class _State(Enum):
    NEW = auto()
    ASKED = auto()
    LATE = auto()
    ANSWERED = auto()
    FAILED = auto()


class Lookup:
    """Who to ask next, and when it is enough."""

    def __init__(
        self,
        target: int,
        *,
        k: int,
        alpha: int,
        max_alpha: int,
        states: dict[PeerId, _State] | None = None,
    ) -> None:
        self._target = target
        self._k = k
        self._alpha = alpha
        self._max_alpha = max_alpha
        self._concurrency = alpha
        self._slowed = False
        self._order: list[tuple[int, PeerId]] = []
        self._states = {} if states is None else states
        """Shared between paths: a peer that one of them asks is nobody else's to ask."""
        self._asked: list[PeerId] = []
        self._depth: dict[PeerId, int] = {}
        """Of every peer this lookup knows of; the others only know its state."""

    def seed(self, peers: Iterable[PeerId]) -> None:
        """Peers known before anybody was asked."""
        self._add(peers, 0)

    def next_peer(self) -> PeerId | None:
        """A peer to ask now, already marked as asked; None when there is no room or no need."""
        waiting = sum(1 for peer in self._asked if self._states[peer] is _State.ASKED)
        if waiting >= self._concurrency or self.exhausted:
            return None
        for peer in self._window():
            if self._states[peer] is _State.NEW:
                self._states[peer] = _State.ASKED
                self._asked.append(peer)
                return peer
        return None

    def answered(self, peer: PeerId, closer: Iterable[PeerId]) -> None:
        """`peer` answered, naming `closer`: of these only the k nearest to the target count."""
        self._states[peer] = _State.ANSWERED
        before = self._nearest()
        near = sorted(set(closer), key=lambda other: peer_position(other) ^ self._target)
        self._add(near[: self._k], self._depth[peer] + 1)
        progress = self._nearest() < before
        self._concurrency = self._alpha if progress and not self._slowed else self._max_alpha

    def failed(self, peer: PeerId) -> None:
        self._states[peer] = _State.FAILED

    def late(self, peer: PeerId) -> None:
        """`peer` has been thinking for longer than it should: go on without it."""
        if self._states[peer] is _State.ASKED:
            self._states[peer] = _State.LATE
            self._slowed = True
            self._concurrency = self._max_alpha

    @property
    def settled(self) -> bool:
        """The k nearest peers, late and failed ones aside, have all answered."""
        return all(self._states[peer] is _State.ANSWERED for peer in self._window())

    @property
    def exhausted(self) -> bool:
        """The bound on questions is reached: a healthy lookup never is."""
        return len(self._asked) >= _MAX_ASKED

    @property
    def asked(self) -> int:
        return len(self._asked)

    @property
    def late_matters(self) -> bool:
        """Whether a late peer would belong to the k nearest, if it answered."""
        return any(self._states[peer] is _State.LATE for peer in self._window(with_late=True))

    @property
    def hops(self) -> int:
        """Answers that led to the nearest peer found, one after the other."""
        found = self.closest()
        return self._depth[found[0]] if found else 0

    def hop(self, peer: PeerId) -> int:
        """Answers that led to `peer`, one after the other."""
        return self._depth[peer]

    def closest(self) -> list[PeerId]:
        """The up to k nearest peers that answered, nearest first."""
        return [p for p in self._window() if self._states[p] is _State.ANSWERED]

    def _nearest(self) -> int:
        return next((d for d, p in self._order if self._states[p] is not _State.FAILED), 1 << 256)

    def _window(self, *, with_late: bool = False) -> Iterator[PeerId]:
        left = self._k
        for _, peer in self._order:
            state = self._states[peer]
            if state is _State.FAILED or (state is _State.LATE and not with_late):
                continue
            yield peer
            left -= 1
            if not left:
                return

    def _add(self, peers: Iterable[PeerId], depth: int) -> None:
        for peer in peers:
            if peer not in self._depth:
                self._states.setdefault(peer, _State.NEW)
                self._depth[peer] = depth
                insort(self._order, (peer_position(peer) ^ self._target, peer))


class Paths:
    """Up to `count` lookups for one target, none of which asks a peer that another has asked.

    A peer that answered elsewhere fills its place in the window of every lookup that knows of it.
    So all of them end at the same k nearest peers when all are honest, at no more questions, and
    the union of what they found has the true nearest ones if only one of them was.
    """

    def __init__(
        self,
        target: int,
        seeds: Sequence[PeerId],
        *,
        count: int,
        k: int,
        alpha: int,
        max_alpha: int,
    ) -> None:
        self._target = target
        self._k = k
        states: dict[PeerId, _State] = {}
        self._lookups = [
            Lookup(target, k=k, alpha=alpha, max_alpha=max_alpha, states=states)
            for _ in range(max(1, min(count, len(seeds))))
        ]
        self._path_of: dict[PeerId, int] = {}
        for number, lookup in enumerate(self._lookups):
            lookup.seed(seeds[number :: len(self._lookups)])

    def __len__(self) -> int:
        return len(self._lookups)

    def next_peer(self) -> PeerId | None:
        """A peer to ask now, on the path that has asked least; already marked as asked."""
        by_asked = sorted(range(len(self._lookups)), key=lambda n: self._lookups[n].asked)
        for number in by_asked:
            if (peer := self._lookups[number].next_peer()) is not None:
                self._path_of[peer] = number
                return peer
        return None

    def path(self, peer: PeerId) -> int:
        """The number of the path that asked `peer`."""
        return self._path_of[peer]

    def hop(self, peer: PeerId) -> int:
        """Answers that led to `peer`, one after the other."""
        return self._owner(peer).hop(peer)

    def answered(self, peer: PeerId, closer: Iterable[PeerId]) -> None:
        self._owner(peer).answered(peer, closer)

    def failed(self, peer: PeerId) -> None:
        self._owner(peer).failed(peer)

    def late(self, peer: PeerId) -> None:
        self._owner(peer).late(peer)

    @property
    def asked(self) -> int:
        return sum(lookup.asked for lookup in self._lookups)

    @property
    def settled(self) -> bool:
        return all(lookup.settled for lookup in self._lookups)

    @property
    def late_matters(self) -> bool:
        return any(lookup.late_matters for lookup in self._lookups)

    @property
    def hops(self) -> int:
        """Answers that led to the nearest peer found; the longest chain among the paths."""
        return max(lookup.hops for lookup in self._lookups)

    def closest(self) -> list[PeerId]:
        """The up to k nearest peers that answered on any path, nearest first."""
        found = {peer for lookup in self._lookups for peer in lookup.closest()}
        return sorted(found, key=lambda peer: peer_position(peer) ^ self._target)[: self._k]

    def _owner(self, peer: PeerId) -> Lookup:
        return self._lookups[self._path_of[peer]]
