"""Which peers should keep a copy of a chunk: pure decisions, the same on every call.

Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker
2005): every member scores every chunk on its own, so that a member that comes or goes moves only
the chunks that are, or become, its own. The weight is free space, softened, and a little speed;
zones are spread first, because a copy in the same room shares its fate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...dht.peer_id import PeerId

_UNKNOWN_SPACE = 64 << 30
_MOST_SPACE = 16 << 40
"""More counts as this much: a claim costs nothing, and must not draw everything to one member."""
_UNKNOWN_THROUGHPUT = 50e6
_HASH_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Member:
    """A live member of the mesh as placement sees it."""

    peer: PeerId
    zone: str
    available_bytes: int | None
    """What it says it can still take; None when it did not say."""
    throughput: float
    """Bytes per second measured lately; 0.0 when never measured."""


def rank(
    digest: bytes, members: Sequence[Member], taken_zones: Collection[str], size: int = 0
) -> list[Member]:
    """All members that may take the chunk, best first.

    Args:
        digest: the chunk's 32 bytes.
        members: candidates, without this node itself; their order does not matter.
        taken_zones: zones that hold a copy already (that of this node at least).
        size: stored size in bytes; members known to have less room are left out.

    The first member of every zone not taken comes before any second member of a zone, so that
    taking from the front always spreads over as many zones as there are.
    """
    fitting = [m for m in members if m.available_bytes is None or m.available_bytes >= size]
    by_score = sorted(fitting, key=lambda m: (-_score(digest, m), m.peer))
    used: dict[str, int] = dict.fromkeys(taken_zones, 1)
    turns: list[tuple[int, Member]] = []
    for member in by_score:
        turn = used.get(member.zone, 0)
        used[member.zone] = turn + 1
        turns.append((turn, member))
    turns.sort(key=lambda pair: pair[0])  # stable: within a turn the score decides
    return [member for _, member in turns]


def _weight(member: Member) -> float:
    space = _UNKNOWN_SPACE if member.available_bytes is None else member.available_bytes
    space = min(space, _MOST_SPACE)
    speed = member.throughput or _UNKNOWN_THROUGHPUT
    # Rounded to powers of two and softened: a weight that follows every byte and every sample
    # would move chunks about between two puts for no gain.
    space_class = math.floor(math.log2(space + 1))
    speed_class = math.floor(math.log2(speed + 1) / 2)
    return float(2.0 ** (space_class / 2 + speed_class / 4))


def _score(digest: bytes, member: Member) -> float:
    # -w / ln(u) with u uniform in (0, 1): the highest of such scores is drawn in proportion to w.
    uniform = (_mix(digest, member.peer) + 0.5) / 2**64
    return -_weight(member) / math.log(uniform) if uniform < 1.0 else math.inf


def _mix(digest: bytes, peer: bytes) -> int:
    """64 well-mixed bits of (digest, peer); splitmix64's finaliser over already random words."""
    key = int.from_bytes(digest[:8], "big") ^ int.from_bytes(peer[-8:], "big")
    key = (key + 0x9E3779B97F4A7C15) & _HASH_MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _HASH_MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _HASH_MASK
    return key ^ (key >> 31)
