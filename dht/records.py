"""Who holds which chunk, as this node keeps it for the mesh. In memory, written behind.

Bounded per publisher and in all: see `eviction`. Our own chunks are kept apart, neither bounded nor
evicted. There may be a million records, so they are numbers in plain dictionaries that share their
keys: 170 bytes of memory for a chunk with one holder. They come by the thousand, so batches are
taken by whole-column operations rather than record by record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct

import trio

from .backend import NEVER, Row, RowKind, RowWriter
from .counters import Counters
from .eviction import FarthestFirst
from .keyspace import DIGEST_BYTES, chunk_position, peer_position
from .peer_id import PeerId
from .record_log import Kept, RecordLog
from .records_wire import MAX_ZONE_CHARS, Verdict
from .settings import DhtSettings

_SIZE = Struct(">I")
_SLICE = 4096


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """`peer`, in `zone`, holds a chunk until `expires`, or says so.

    `size` is in stored bytes, 0 when not told; `expires` is Unix time by our clock.
    """

    peer: PeerId
    size: int
    zone: str
    expires: float


_Holders = tuple[bytes, PeerId, *tuple[PeerId, ...]]


@dataclass(slots=True)
class _Share:
    """What one publisher stored here: digest -> size and end, packed."""

    farthest: FarthestFirst
    alone: _Holders
    """What `ChunkRecords._holders` says of a chunk that only this publisher holds."""
    zone: str = ""
    chunks: dict[bytes, int] = field(default_factory=dict)


def packed(size: int, expires: float) -> int:
    """Half the memory of a tuple; whole seconds are enough. See `size_of`, `expires_of`."""
    return max(0, int(expires)) << 32 | size


def size_of(number: int) -> int:
    """In stored bytes; of a number of `ChunkRecords.kept_for`."""
    return number & 0xFFFFFFFF


def expires_of(number: int) -> int:
    """As Unix time; of a number of `ChunkRecords.kept_for`."""
    return number >> 32


class ChunkRecords:
    """Chunk records by digest and by publisher; and the chunks we hold ourselves.

    `_holders[digest]` are its holders, after the copy of the digest that all shares but the first
    use as their key; empty while there is one holder. Invariant: `peer in _holders[digest][1:]`
    exactly when `digest in _shares[peer].chunks`.
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
        self._holders: dict[bytes, _Holders] = {}
        self._farthest = FarthestFirst(self._own_position, chunk_position)
        self._count = 0
        self._log = RecordLog(rows, self._kept_for_publisher)

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

    def still_held(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of `digests` that we hold ourselves."""
        return [digest for digest in digests if digest in self._own]

    def own_sizes(self, digests: Iterable[bytes]) -> tuple[int | None, ...]:
        """The size of each chunk as we hold it, None where we do not."""
        return tuple(self._own.get(digest) for digest in digests)

    def own_size(self, digest: bytes) -> int | None:
        """The size of a chunk we hold ourselves."""
        return self._own.get(digest)

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
        return self.put_all(publisher, zone, (digest,), (size,), expires)[0]

    def put_all(
        self,
        publisher: PeerId,
        zone: str | None,
        digests: Sequence[bytes],
        sizes: Sequence[int],
        expires: float,
    ) -> tuple[Verdict, ...]:
        """As `put`, for a batch; one verdict per digest."""
        if not digests:
            return ()
        verdicts = self._store(self._share(publisher, zone), digests, sizes, expires)
        self._log.changed(publisher, digests)
        return verdicts

    def _store(
        self, share: _Share, digests: Sequence[bytes], sizes: Sequence[int], expires: float
    ) -> tuple[Verdict, ...]:
        fresh = [digest for digest in dict.fromkeys(digests) if digest not in share.chunks]
        settings = self._settings
        room = min(
            settings.records_per_peer - len(share.chunks), settings.max_records - self._count
        )
        if len(fresh) > room:
            return self._put_what_fits(share, digests, sizes, expires)
        self._insert(share, digests, sizes, expires, fresh)
        return (Verdict.STORED,) * len(digests)

    def _put_what_fits(
        self, share: _Share, digests: Sequence[bytes], sizes: Sequence[int], expires: float
    ) -> tuple[Verdict, ...]:
        verdicts: list[Verdict] = []
        for digest, size in zip(digests, sizes, strict=True):
            fresh = [] if digest in share.chunks else [digest]
            verdict = self._room_for(share, digest) if fresh else Verdict.STORED
            if verdict is Verdict.STORED:
                self._insert(share, (digest,), (size,), expires, fresh)
            else:
                self._counters.add("records_refused")
            verdicts.append(verdict)
        return tuple(verdicts)

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
            number = share.chunks[digest]
            if expires_of(number) > now:
                out.append(ChunkRecord(peer, size_of(number), share.zone, expires_of(number)))
        return sorted(out, key=lambda record: record.expires, reverse=True)

    def kept_for(self, digest: bytes) -> Sequence[tuple[int, PeerId]]:
        """Other holders of `digest` as numbers, in no order, the expired ones too.

        For answering about thousands of digests: `expires_of` and `size_of` read the numbers, and
        chunks that were announced together have the same one.
        """
        known = self._holders.get(digest)
        if known is None:
            return ()
        if len(known) == 2:
            peer = known[1]
            return ((self._shares[peer].chunks[digest], peer),)
        return [(self._shares[peer].chunks[digest], peer) for peer in known[1:]]

    def zone_of(self, publisher: PeerId) -> str:
        """Where a publisher whose records are kept says it is."""
        return self._shares[publisher].zone

    def withdraw(self, publisher: PeerId, digests: Iterable[bytes]) -> int:
        """Forget `publisher`'s records of `digests`; returns how many there were."""
        share = self._shares.get(publisher)
        present = [] if share is None else [d for d in dict.fromkeys(digests) if d in share.chunks]
        for digest in present:
            self._remove(publisher, digest)
        if present:
            self._log.changed(publisher, present)
        return len(present)

    async def sweep(self, now: float) -> int:
        """Forget what has expired, some thousand records at a time, as there may be a million.

        Returns how many records that were.
        """
        before, expired = packed(0, now + 1), 0
        for publisher in list(self._shares):
            digests = list(self._shares[publisher].chunks)
            for start in range(0, len(digests), _SLICE):
                chunks = self._shares[publisher].chunks
                gone = [
                    d for d in digests[start : start + _SLICE] if chunks.get(d, before) < before
                ]
                for digest in gone:
                    self._remove(publisher, digest)
                expired += len(gone)
                await trio.lowlevel.checkpoint()
            if not self._shares[publisher].chunks:
                del self._shares[publisher]
        self._log.expire(now)
        return expired

    def restore(self, rows: Sequence[Row], now: float) -> None:
        """Take over rows of an earlier run; rows that make no sense or have expired are skipped."""
        logged: list[Row] = []
        for row in rows:
            kind, digest, publisher, value, expires = row
            if kind == RowKind.CHUNKS:
                logged.append(row)
            elif len(digest) == DIGEST_BYTES and len(value) >= _SIZE.size:
                (size,) = _SIZE.unpack_from(value)
                if kind == RowKind.OWN_CHUNK:
                    self._own[digest] = size
                elif kind == RowKind.CHUNK:
                    self._rows.delete(RowKind.CHUNK, digest, publisher)
                    if expires > now:
                        zone = value[_SIZE.size :].decode("utf-8", "replace")[:MAX_ZONE_CHARS]
                        self.put(PeerId(publisher), zone, digest, size, expires)
        for peer, kept in self._log.restore(logged, now).items():
            self._take_over(peer, kept)

    def _take_over(self, publisher: PeerId, kept: Kept) -> None:
        """The bounds may be narrower than they were."""
        share = self._share(publisher, kept.zone)
        by_end: dict[int, list[bytes]] = {}
        for digest, number in kept.chunks.items():
            by_end.setdefault(expires_of(number), []).append(digest)
        for end, digests in by_end.items():
            sizes = [size_of(kept.chunks[digest]) for digest in digests]
            self._store(share, digests, sizes, end)
        if lost := [digest for digest in kept.chunks if digest not in share.chunks]:
            self._log.changed(publisher, lost)

    def _kept_for_publisher(self, publisher: PeerId) -> tuple[str, Mapping[bytes, int]]:
        share = self._shares.get(publisher)
        return ("", {}) if share is None else (share.zone, share.chunks)

    def _share(self, publisher: PeerId, zone: str | None) -> _Share:
        share = self._shares.get(publisher)
        if share is None:
            farthest = FarthestFirst(self._own_position, chunk_position)
            share = _Share(farthest, (b"", publisher))
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
            self._evict(share.alone[1], far)
        while self._count >= self._settings.max_records:
            far = self._farthest.make_room(self._holders, digest)
            if far is None:
                return Verdict.FAR
            for publisher in self._peers(far):
                self._evict(publisher, far)
        return Verdict.STORED

    def _insert(
        self,
        share: _Share,
        digests: Sequence[bytes],
        sizes: Sequence[int],
        expires: float,
        fresh: Sequence[bytes],
    ) -> None:
        """Keep records for which there is room; `fresh`: those of `digests` that are new."""
        keys = digests
        if fresh:
            if self._holders.keys().isdisjoint(fresh):
                self._farthest.added_all(fresh)
                self._holders.update(dict.fromkeys(fresh, share.alone))
            else:
                own_copy = {digest: self._joined(share, digest) for digest in fresh}
                keys = [own_copy.get(digest, digest) for digest in digests]
            share.farthest.added_all(fresh)
            self._count += len(fresh)
        end = packed(0, expires)
        if sizes.count(sizes[0]) == len(sizes):
            # One number for all: it takes memory once.
            share.chunks.update(dict.fromkeys(keys, end | sizes[0]))
        else:
            share.chunks.update(zip(keys, map(end.__or__, sizes), strict=True))

    def _joined(self, share: _Share, digest: bytes) -> bytes:
        """Make a publisher one of the holders; returns the copy of `digest` to use as its key."""
        known = self._holders.get(digest)
        if known is None:
            self._farthest.added(digest)
            self._holders[digest] = share.alone
            return digest
        copy = known[0] or digest
        self._holders[digest] = (copy, *known[1:], share.alone[1])
        return copy

    def _peers(self, digest: bytes) -> tuple[PeerId, ...]:
        known = self._holders.get(digest)
        return () if known is None else known[1:]

    def _evict(self, publisher: PeerId, digest: bytes) -> None:
        self._counters.add("records_evicted")
        self._remove(publisher, digest)
        self._log.changed(publisher, (digest,))

    def _remove(self, publisher: PeerId, digest: bytes) -> None:
        del self._shares[publisher].chunks[digest]
        known = self._holders[digest]
        left = tuple(peer for peer in known[1:] if peer != publisher)
        if not left:
            del self._holders[digest]
        elif len(left) == 1:
            self._holders[digest] = self._shares[left[0]].alone
        else:
            self._holders[digest] = (known[0], left[0], *left[1:])
        self._count -= 1
