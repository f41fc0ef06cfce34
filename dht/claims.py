"""What nodes claim to know around themselves, and what that is worth: pure decisions.

A claim is of all peers that share some bits with its maker. Nobody is believed alone, and nobody
who is found out: whoever names peers that do not answer, or leaves out peers of its own stretch
that do. Colluders who name each other and nobody else agree perfectly, and may be as many around a
key as the honest; but one honest claim, or a few honest peers we know there, convict all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from .keyspace import BITS, PeerIndex, common_bits, peer_position
from .peer_id import PeerId

CLAIM_LIFETIME = 600.0
_MAX_CLAIMS = 4096
_MAX_SILENT = 3
_MAX_OMITTED = 1
_LEAST_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Claim:
    """At time `at`, `peer` believed `known` to hold all peers sharing `bits` bits with it."""

    peer: PeerId
    origin: str | PeerId
    """Its network when that is public: all claims of one network are one."""
    bits: int
    known: frozenset[PeerId]
    at: float
    by_chance: bool = False
    """Whether chance chose whom to ask, so that it may stand for the mesh as a whole."""

    @property
    def stretch(self) -> tuple[int, int]:
        return self.bits, prefix(peer_position(self.peer), self.bits)

    @property
    def size(self) -> float:
        """How many members the mesh has, if it is everywhere as dense as here."""
        at = peer_position(self.peer)
        here = sum(common_bits(peer_position(peer), at) >= self.bits for peer in self.known)
        return here * 2.0**self.bits


def prefix(target: int, bits: int) -> int:
    return target >> (BITS - bits)


def _unended(until: dict[PeerId, float], now: float) -> dict[PeerId, float]:
    return {peer: end for peer, end in until.items() if end > now}


class Claims:
    """All fresh claims, and what speaks against them. Times are of one monotonic clock."""

    def __init__(self, own: PeerId, is_met: Callable[[PeerId], bool]) -> None:
        self._own = own
        self._is_met = is_met
        """Whether a peer has dealt with us: then it is no invention."""
        self._claims: dict[PeerId, Claim] = {}
        self._doubted: set[PeerId] = set()
        """Whose claims settle nothing, as they leave out peers that are there."""
        self._silent: dict[PeerId, float] = {}
        """Claimed peers that did not answer when asked, and until when they are left out."""
        self._void: dict[PeerId, float] = {}
        """Peers whose claims are worth nothing, and until when."""
        self._named_by_void: dict[PeerId, float] = {}
        """Whom void claims named, and until when: when they dealt with us, they are there."""

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, peer: object) -> bool:
        return peer in self._claims

    def heard(self, now: float) -> set[PeerId]:
        """Whom there is no use in asking again for a while."""
        return {*self._claims, *(peer for peer, until in self._void.items() if until > now)}

    def add(self, claim: Claim) -> None:
        if self._void.get(claim.peer, 0.0) > claim.at:
            return
        self._drop(claim.peer)
        while len(self._claims) >= _MAX_CLAIMS:
            self._drop(next(iter(self._claims)))
        self._claims[claim.peer] = claim

    def fresh(self, now: float) -> list[Claim]:
        for claim in list(self._claims.values()):
            if claim.at < now - CLAIM_LIFETIME:
                self._drop(claim.peer)
        return list(self._claims.values())

    def named(self, now: float) -> set[PeerId]:
        """Whom claims name, without those that were asked in vain.

        When half a mesh is gone at once every claim is void, and still names who is left.
        """
        out: set[PeerId] = set()
        for claim in self.fresh(now):
            out |= claim.known
        silent = {peer for peer, until in self._silent.items() if until > now}
        out = {peer for peer in out if peer not in silent or self._is_met(peer)}
        others = (peer for peer, until in self._named_by_void.items() if until > now)
        return out.union(peer for peer in others if self._is_met(peer))

    def vouched(self, now: float) -> set[PeerId]:
        """Whom claims name that nothing speaks against."""
        good = [claim.known for claim in self.fresh(now) if claim.peer not in self._doubted]
        return set().union(*good)

    @property
    def any_doubted(self) -> bool:
        return bool(self._doubted)

    def over(self, now: float) -> Counter[tuple[int, int]]:
        """How many claims that count there are over each stretch (bits, prefix)."""
        good = [claim for claim in self.fresh(now) if claim.peer not in self._doubted]
        return Counter(stretch for stretch, _ in {(claim.stretch, claim.origin) for claim in good})

    def size(self, own_estimate: float, now: float) -> float:
        """How many members the mesh has, by how dense it is at places that chance has chosen."""
        sizes = [claim.size for claim in self.fresh(now) if claim.by_chance]
        return median([own_estimate, *sizes]) if len(sizes) >= _LEAST_SAMPLES else own_estimate

    def disputed(self, index: PeerIndex, now: float) -> list[PeerId]:
        """Peers that never dealt with us, and that claims over their place leave out."""
        out: dict[PeerId, None] = {}
        for claim in self.fresh(now):
            out.update(dict.fromkeys(p for p in self._omitted(claim, index) if not self._is_met(p)))
        return list(out)

    def _omitted(self, claim: Claim, index: PeerIndex) -> set[PeerId]:
        return set(index.under(peer_position(claim.peer), claim.bits)) - claim.known - {self._own}

    def contradict(self, index: PeerIndex, now: float) -> int:
        """Doubt claims that leave out peers who dealt with us; returns how many anew.

        One of them may have come just now.
        """
        before = len(self._doubted)
        for claim in self.fresh(now):
            omitted = sum(self._is_met(peer) for peer in self._omitted(claim, index))
            if omitted > _MAX_OMITTED and 5 * omitted > len(claim.known):
                self._doubted.add(claim.peer)
        return len(self._doubted) - before

    def silence(self, silent: Iterable[PeerId], now: float) -> int:
        """Leave out peers that did not answer, and claims that name mostly such; how many."""
        self._silent = _unended(self._silent, now)
        self._named_by_void = _unended(self._named_by_void, now)
        self._silent.update(dict.fromkeys(silent, now + CLAIM_LIFETIME))
        void = 0
        for claim in self.fresh(now):
            named = sum(peer in self._silent for peer in claim.known)
            if named > _MAX_SILENT and 3 * named > len(claim.known):
                self._drop(claim.peer)
                self._void[claim.peer] = now + CLAIM_LIFETIME
                self._named_by_void.update(dict.fromkeys(claim.known, now + CLAIM_LIFETIME))
                void += 1
        return void

    def _drop(self, peer: PeerId) -> None:
        self._claims.pop(peer, None)
        self._doubted.discard(peer)
