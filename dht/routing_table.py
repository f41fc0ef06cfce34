"""k-buckets (Maymounkov and Mazieres 2002, section 2.2), pure: no clock, no network.

A bucket holds up to k peers whose positions share exactly n leading bits with ours, least recently
seen first. A peer that finds its bucket full waits in the bucket's replacement cache and moves up
when a member is evicted.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

from .keyspace import common_bits, peer_position, position
from .peer_id import PeerId

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

    def seen(self, peer: PeerId, now: float) -> bool:
        """`peer` just proved to be alive; returns whether it is (now) a member."""
        if peer == self._own:
            return False
        bucket = self._buckets.setdefault(self.bucket_of(peer), _Bucket())
        if peer in bucket.members or len(bucket.members) < self._k:
            bucket.waiting.pop(peer, None)
            bucket.members[peer] = now
            bucket.members.move_to_end(peer)
            return True
        bucket.waiting[peer] = now
        bucket.waiting.move_to_end(peer)
        while len(bucket.waiting) > self._k:
            bucket.waiting.popitem(last=False)
        return False

    def demote(self, peer: PeerId) -> None:
        """`peer` failed once: first to be looked at, and first to go for a waiting one."""
        bucket = self._buckets.get(self.bucket_of(peer))
        if bucket is None:
            return
        bucket.waiting.pop(peer, None)
        if peer in bucket.members:
            bucket.members.move_to_end(peer, last=False)

    def evict(self, peer: PeerId) -> PeerId | None:
        """Drop `peer`; returns the waiting peer that took its place, if any."""
        bucket = self._buckets.get(self.bucket_of(peer))
        if bucket is None:
            return None
        bucket.waiting.pop(peer, None)
        if bucket.members.pop(peer, None) is None or not bucket.waiting:
            return None
        risen, when = bucket.waiting.popitem(last=True)
        bucket.members[risen] = when
        bucket.members.move_to_end(risen, last=False)
        return risen

    def closest(self, target: int, count: int) -> list[PeerId]:
        """The `count` members nearest to `target`, nearest first."""
        return nsmallest(count, self, key=lambda peer: peer_position(peer) ^ target)

    def complete_bits(self) -> int:
        """The depth from which we believe to know every live peer that shares our prefix.

        A node knows its k nearest peers, because they looked for it when it came, and it for them.
        The prefix beyond the one shared with the farthest of these lies inside that circle. With
        fewer than k peers known, these are the whole mesh: 0.
        """
        near = self.closest(self._own_position, self._k)
        return 0 if len(near) < self._k else self.bucket_of(near[-1]) + 1

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
