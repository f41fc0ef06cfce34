"""Who holds which chunk, as this node keeps it for the mesh. In memory, written behind.

Bounded per publisher and in all: see `eviction`. Our own chunks are kept apart, neither bounded nor
evicted. There may be a million records, so they are numbers in plain dictionaries that share their
keys: 250 bytes of memory for a chunk with one holder, 130 for each of three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from .backend import NEVER, Row, RowKind, RowWriter
from .counters import Counters
from .eviction import FarthestFirst
from .keyspace import chunk_position, peer_position
from .peer_id import PeerId
from .records_wire import MAX_ZONE_CHARS, Verdict
from .settings import DhtSettings

_SIZE = Struct(">I")


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """`peer`, in `zone`, holds a chunk until `expires`, or says so.

    `size` is in stored bytes, 0 when not told; `expires` is Unix time by our clock.
    """

    peer: PeerId
    size: int
    zone: str
    expires: float


@dataclass(slots=True)
class _Share:
    """What one publisher stored here: digest -> size and end, packed."""

    farthest: FarthestFirst
    zone: str = ""
    chunks: dict[bytes, int] = field(default_factory=dict)


def _packed(size: int, expires: float) -> int:
    """Half the memory of a tuple; whole seconds are enough."""
    return max(0, int(expires)) << 32 | size


def _size(packed: int) -> int:
    return packed & 0xFFFFFFFF


def _expires(packed: int) -> int:
    return packed >> 32


class ChunkRecords:
    """Chunk records by digest and by publisher; and the chunks we hold ourselves.

    `_holders[digest]` is the digest itself, so that all shares can use this one copy of it as their
    key, and then its holders. Invariant: `peer in _holders[digest][1:]` exactly when
    `digest in _shares[peer].chunks`.
    """

    def __init__(
        self, own: PeerId, settings: DhtSettings, rows: RowWriter, counters: Counters
    ) -> None:
        self._own_id = own
        self._own_position = peer_position(own)
        self._settings = settings
        self._rows = rows
        self._counters = counters
        self._own: dict[bytes, int] = {}
        self._shares: dict[PeerId, _Share] = {}
        self._holders: dict[bytes, tuple[bytes, *tuple[PeerId, ...]]] = {}
        self._farthest = FarthestFirst(self._own_position, chunk_position)
        self._count = 0

    def __len__(self) -> int:
        """Records of others kept here."""
        return self._count

    def own(self) -> dict[bytes, int]:
        """digest -> stored size of every chunk we announced: a copy."""
        return dict(self._own)

    @property
    def own_count(self) -> int:
        return len(self._own)

    def holds(self, digest: bytes) -> bool:
        """Whether we hold this chunk ourselves."""
        return digest in self._own

    def own_sizes(self, digests: Iterable[bytes]) -> tuple[int | None, ...]:
        """The size of each chunk as we hold it, None where we do not."""
        return tuple(self._own.get(digest) for digest in digests)

    def knows(self, publisher: PeerId, digest: bytes) -> bool:
        """Whether a record of `publisher` about `digest` is kept here."""
        share = self._shares.get(publisher)
        return share is not None and digest in share.chunks

    def by_publisher(self) -> list[tuple[PeerId, list[bytes]]]:
        """What is kept for others, as it is now."""
        return [(publisher, list(share.chunks)) for publisher, share in self._shares.items()]

    def hold(self, digest: bytes, size: int) -> None:
        """We hold this chunk ourselves."""
        self._own[digest] = size
        self._rows.save(RowKind.OWN_CHUNK, digest, b"", _SIZE.pack(size), NEVER)

    def let_go(self, digests: Iterable[bytes]) -> None:
        """We no longer hold these chunks."""
        for digest in digests:
            if self._own.pop(digest, None) is not None:
                self._rows.delete(RowKind.OWN_CHUNK, digest, b"")

    def put(
        self, publisher: PeerId, zone: str | None, digest: bytes, size: int, expires: float
    ) -> Verdict:
        """Keep or refresh another peer's record; the caller has authenticated `publisher`.

        `zone` None: the standard wire does not tell, so what is known stays.
        """
        share = self._share(publisher, zone)
        if digest not in share.chunks:
            verdict = self._room_for(share, digest)
            if verdict is not Verdict.STORED:
                self._counters.add("records_refused")
                return verdict
        value = _SIZE.pack(size) + share.zone.encode()
        self._rows.save(RowKind.CHUNK, digest, publisher, value, expires)
        self._insert(publisher, share, digest, size, expires)
        return Verdict.STORED

    def holders(self, digest: bytes, now: float) -> list[ChunkRecord]:
        """Everyone known to hold `digest`, longest-lived record first."""
        out: list[ChunkRecord] = []
        if (own_size := self._own.get(digest)) is not None:
            settings = self._settings
            out.append(
                ChunkRecord(self._own_id, own_size, settings.zone, now + settings.record_ttl)
            )
        for peer in self._peers(digest):
            share = self._shares[peer]
            packed = share.chunks[digest]
            if _expires(packed) > now:
                out.append(ChunkRecord(peer, _size(packed), share.zone, _expires(packed)))
        return sorted(out, key=lambda record: record.expires, reverse=True)

    def withdraw(self, publisher: PeerId, digests: Iterable[bytes]) -> int:
        """Forget `publisher`'s records of `digests`; returns how many there were."""
        share = self._shares.get(publisher)
        present = [] if share is None else [d for d in dict.fromkeys(digests) if d in share.chunks]
        for digest in present:
            self._remove(publisher, digest)
        return len(present)

    def sweep(self, now: float) -> int:
        """Forget what has expired; returns how many records that were."""
        expired = [
            (publisher, digest)
            for publisher, share in self._shares.items()
            for digest, packed in share.chunks.items()
            if _expires(packed) <= now
        ]
        for publisher, digest in expired:
            self._remove(publisher, digest)
        self._shares = {peer: share for peer, share in self._shares.items() if share.chunks}
        return len(expired)

    def restore(self, rows: Sequence[Row], now: float) -> None:
        """Take over rows of an earlier run; rows that make no sense or have expired are skipped."""
        for kind, digest, publisher, value, expires in rows:
            if len(digest) != 32 or len(value) < _SIZE.size:
                continue
            (size,) = _SIZE.unpack_from(value)
            if kind == RowKind.OWN_CHUNK:
                self._own[digest] = size
            elif kind == RowKind.CHUNK and expires > now:
                zone = value[_SIZE.size :].decode("utf-8", "replace")[:MAX_ZONE_CHARS]
                peer = PeerId(publisher)
                share = self._share(peer, zone)
                # The bounds may be narrower than they were.
                if digest in share.chunks or self._room_for(share, digest) is Verdict.STORED:
                    self._insert(peer, share, digest, size, expires)
                else:
                    self._rows.delete(RowKind.CHUNK, digest, publisher)
            elif kind == RowKind.CHUNK:
                self._rows.delete(RowKind.CHUNK, digest, publisher)

    def _share(self, publisher: PeerId, zone: str | None) -> _Share:
        share = self._shares.get(publisher)
        if share is None:
            share = _Share(FarthestFirst(self._own_position, chunk_position))
            self._shares[publisher] = share
        if zone is not None:
            share.zone = zone
        return share

    def _room_for(self, share: _Share, digest: bytes) -> Verdict:
        """Evict until one more record of `share` fits, or say why it does not."""
        if len(share.chunks) >= self._settings.records_per_peer:
            far = share.farthest.make_room(share.chunks, digest)
            if far is None:
                return Verdict.PEER_FULL
            publisher = next(p for p in self._peers(far) if self._shares[p] is share)
            self._evict(publisher, far)
        while self._count >= self._settings.max_records:
            far = self._farthest.make_room(self._holders, digest)
            if far is None:
                return Verdict.FAR
            for publisher in self._peers(far):
                self._evict(publisher, far)
        return Verdict.STORED

    def _insert(
        self, publisher: PeerId, share: _Share, digest: bytes, size: int, expires: float
    ) -> None:
        if digest not in share.chunks:
            known = self._holders.get(digest)
            if known is None:
                self._farthest.added(digest)
                self._holders[digest] = (digest, publisher)
            else:
                digest = known[0]
                self._holders[digest] = (*known, publisher)
            share.farthest.added(digest)
            self._count += 1
        share.chunks[digest] = _packed(size, expires)

    def _peers(self, digest: bytes) -> tuple[PeerId, ...]:
        known = self._holders.get(digest)
        return () if known is None else known[1:]

    def _evict(self, publisher: PeerId, digest: bytes) -> None:
        self._counters.add("records_evicted")
        self._remove(publisher, digest)

    def _remove(self, publisher: PeerId, digest: bytes) -> None:
        del self._shares[publisher].chunks[digest]
        own_copy = self._holders[digest][0]
        left = tuple(peer for peer in self._peers(digest) if peer != publisher)
        if left:
            self._holders[own_copy] = (own_copy, *left)
        else:
            del self._holders[digest]
        self._count -= 1
        self._rows.delete(RowKind.CHUNK, digest, publisher)
