"""k-buckets (Maymounkov and Mazieres 2002, section 2.2), pure: no clock, no network.

A bucket holds up to k peers whose positions share exactly n leading bits with ours, least recently
seen first. A peer that finds its bucket full waits in the bucket's replacement cache and moves up
when a member is evicted.

Whoever has many peers in few networks cannot keep others out: the share of one network is
`MAX_PER_BUCKET` of a bucket and `MAX_PER_TABLE` of all. Kubo refuses what is beyond that; here it
may fill places that are free, and has to make room when another network comes, so that a mesh
inside one network works too. The caller says which network a peer is in; peers of none (private
addresses) have no limit.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from .keyspace import BITS, PeerIndex, common_bits, peer_position, position
from .peer_id import PeerId

MAX_PER_BUCKET = 2
MAX_PER_TABLE = 10
_MAX_REFRESH_DEPTH = 14


@dataclass(slots=True)
class _Bucket:
    """Both maps: peer -> when it was last seen, least recent first."""

    members: OrderedDict[PeerId, float] = field(default_factory=OrderedDict)
    waiting: OrderedDict[PeerId, float] = field(default_factory=OrderedDict)
    refreshed: float = float("-inf")


class RoutingTable:
    """The peers a node knows to be alive, dense near itself and sparse far away."""

    def __init__(self, own: PeerId, k: int) -> None:
        self._own = own
        self._own_position = peer_position(own)
        self._k = k
        self._buckets: dict[int, _Bucket] = {}
        self._groups: dict[PeerId, str] = {}
        """Networks of members and of those that wait."""
        self._index: PeerIndex | None = None

    def __len__(self) -> int:
        return sum(len(bucket.members) for bucket in self._buckets.values())

    def __contains__(self, peer: object) -> bool:
        if not isinstance(peer, PeerId) or peer == self._own:
            return False
        bucket = self._buckets.get(self.bucket_of(peer))
        return bucket is not None and peer in bucket.members

    def __iter__(self) -> Iterator[PeerId]:
        return iter([peer for bucket in self._buckets.values() for peer in bucket.members])

    def bucket_of(self, peer: PeerId) -> int:
        return common_bits(self._own_position, peer_position(peer))

    def last_seen(self, peer: PeerId) -> float | None:
        bucket = self._buckets.get(self.bucket_of(peer))
        return None if bucket is None else bucket.members.get(peer)

    def seen(self, peer: PeerId, now: float, group: str | None = None) -> bool:
        """`peer` of the network `group` just proved to be alive; returns whether it is a member.

        A member keeps the network it was first seen in.
        """
        if peer == self._own:
            return False
        bucket = self._buckets.setdefault(self.bucket_of(peer), _Bucket())
        if peer not in bucket.members:
            if group is not None:
                self._groups[peer] = group
            if len(bucket.members) >= self._k and not self._make_room(bucket, peer):
                self._wait(bucket, peer, now)
                return False
            bucket.waiting.pop(peer, None)
            self._index = None
        bucket.members[peer] = now
        bucket.members.move_to_end(peer)
        return True

    def _make_room(self, bucket: _Bucket, peer: PeerId) -> bool:
        """Have a member that is beyond its network's share make room for one that is not."""
        if self._is_beyond_share(bucket, peer):
            return False
        for member in bucket.members:
            if self._is_beyond_share(bucket, member):
                self._wait(bucket, member, bucket.members.pop(member))
                return True
        return False

    def _wait(self, bucket: _Bucket, peer: PeerId, seen: float) -> None:
        bucket.waiting[peer] = seen
        bucket.waiting.move_to_end(peer)
        while len(bucket.waiting) > self._k:
            dropped, _ = bucket.waiting.popitem(last=False)
            self._groups.pop(dropped, None)

    def _is_beyond_share(self, bucket: _Bucket, peer: PeerId) -> bool:
        """Whether other members leave no place for `peer` in the share of its network."""
        group = self._groups.get(peer)
        if group is None:
            return False
        here = sum(self._groups.get(other) == group for other in bucket.members if other != peer)
        if here >= MAX_PER_BUCKET:
            return True
        return sum(self._groups.get(other) == group for other in self if other != peer) >= (
            MAX_PER_TABLE
        )

    def demote(self, peer: PeerId) -> None:
        """`peer` failed once: first to be looked at, and first to go for a waiting one."""
        bucket = self._buckets.get(self.bucket_of(peer))
        if bucket is None:
            return
        self._drop_waiting(bucket, peer)
        if peer in bucket.members:
            bucket.members.move_to_end(peer, last=False)

    def evict(self, peer: PeerId) -> PeerId | None:
        """Drop `peer`; returns the waiting peer that took its place, if any."""
        bucket = self._buckets.get(self.bucket_of(peer))
        if bucket is None:
            return None
        was_member = bucket.members.pop(peer, None) is not None
        self._drop_waiting(bucket, peer)
        if not was_member:
            return None
        self._index = None
        if not bucket.waiting:
            return None
        newest = list(reversed(bucket.waiting))
        risen = next((p for p in newest if not self._is_beyond_share(bucket, p)), newest[0])
        bucket.members[risen] = bucket.waiting.pop(risen)
        bucket.members.move_to_end(risen, last=False)
        return risen

    def _drop_waiting(self, bucket: _Bucket, peer: PeerId) -> None:
        bucket.waiting.pop(peer, None)
        if peer not in bucket.members:
            self._groups.pop(peer, None)

    def index(self) -> PeerIndex:
        """All members and ourselves; the same object until a member comes or goes."""
        if self._index is None:
            self._index = PeerIndex([self._own, *self])
        return self._index

    def closest(self, target: int, count: int) -> list[PeerId]:
        """The `count` members nearest to `target`, nearest first."""
        pool: list[PeerId] = []
        for peers in self._by_distance(common_bits(self._own_position, target)):
            pool += peers
            if len(pool) >= count:
                break
        pool.sort(key=lambda peer: peer_position(peer) ^ target)
        return pool[:count]

    def _by_distance(self, shared: int) -> Iterator[list[PeerId]]:
        """All members in groups, of which each is nearer than the next to a target.

        `shared`: how many bits it shares with us. Its own bucket is nearest. Members of all deeper
        ones differ from it in the same bit, so they are one group.
        """
        numbers = sorted(self._buckets, reverse=True)
        if shared in self._buckets:
            yield list(self._buckets[shared].members)
        yield [peer for n in numbers if n > shared for peer in self._buckets[n].members]
        for n in numbers:
            if n < shared:
                yield list(self._buckets[n].members)

    def complete_bits(self) -> int:
        """The depth from which we believe to know every live peer that shares our prefix.

        A node knows its k nearest peers, because they looked for it when it came, and it for them.
        The prefix beyond the one shared with the farthest of these lies inside that circle. With
        fewer than k peers known, these are the whole mesh: 0.
        """
        known = 0
        for number in sorted(self._buckets, reverse=True):
            known += len(self._buckets[number].members)
            if known >= self._k:
                return number + 1
        return 0

    def estimated_size(self) -> float:
        """How many peers the mesh has, ourselves included, by how near the nearest k are.

        With fewer than k known, these are all. Otherwise right within about 1 / sqrt(k).
        """
        near = self.closest(self._own_position, self._k)
        if len(near) < self._k:
            return 1.0 + len(near)
        farthest = peer_position(near[-1]) ^ self._own_position
        return self._k * 2.0**BITS / max(1, farthest)

    def stale_buckets(self, now: float, age: float) -> list[int]:
        """The full buckets, in which unknown peers may hide, that were not refreshed for `age`."""
        return [
            n
            for n in range(min(self.complete_bits(), _MAX_REFRESH_DEPTH))
            if self._buckets.setdefault(n, _Bucket()).refreshed + age <= now
        ]

    def refreshed(self, bucket: int, now: float) -> None:
        self._buckets.setdefault(bucket, _Bucket()).refreshed = now

    def key_in(self, bucket: int, rng: random.Random) -> bytes:
        """A random key whose position falls into `bucket`: about 2 ** (bucket + 1) hashes.

        Found by trial, because the standard wire asks by key and hashes it on the other side.
        """
        while True:
            key = rng.randbytes(32)
            if common_bits(self._own_position, position(key)) == bucket:
                return key

    def questionable(self, now: float, age: float) -> list[PeerId]:
        """Per bucket the least recently seen member, when it was not seen for `age`."""
        oldest = [next(iter(b.members.items())) for b in self._buckets.values() if b.members]
        return [peer for peer, seen in oldest if seen + age <= now]
