"""Manifests this node keeps: our own, and others' for the mesh. In memory, written behind.

Named by the digest of their bytes, so nobody can pass off another; bounded in bytes per publisher
and in all, far ones going first. Our own are neither bounded nor evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from ..errors import IntegrityError, RefusedError
from .backend import NEVER, Row, RowKind, RowWriter
from .counters import Counters
from .eviction import FarthestFirst
from .keyspace import manifest_position, peer_position
from .peer_id import PeerId
from .records_wire import Verdict
from .settings import MAX_VALUE_BYTES, DhtSettings


def check_manifest(digest: bytes, value: bytes) -> None:
    """Check that `value` is what `digest` names.

    Raises:
        RefusedError: larger than the DHT keeps.
        IntegrityError: other bytes.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise RefusedError(
            f"A manifest of {len(value)} bytes; the DHT keeps at most {MAX_VALUE_BYTES}.",
            hint="Store it as chunks and name those in a smaller one.",
        )
    if blake3(value).digest() != digest:
        raise IntegrityError(f"{len(value)} bytes are not the manifest {digest.hex()[:16]}...")


@dataclass(frozen=True, slots=True)
class _Kept:
    publisher: PeerId
    value: bytes
    expires: float


class ManifestStore:
    """digest -> manifest.

    Invariant: `_bytes_of[p]` is the total size of foreign manifests accounted to publisher p.
    """

    def __init__(
        self, own: PeerId, settings: DhtSettings, rows: RowWriter, counters: Counters
    ) -> None:
        self._own_id = own
        self._settings = settings
        self._rows = rows
        self._counters = counters
        self._own: dict[bytes, bytes] = {}
        self._kept: dict[bytes, _Kept] = {}
        self._bytes_of: dict[PeerId, int] = {}
        self._farthest = FarthestFirst(peer_position(own), manifest_position)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes of others' manifests."""
        return sum(self._bytes_of.values())

    def own_digests(self) -> list[bytes]:
        return list(self._own)

    def own_value(self, digest: bytes) -> bytes | None:
        return self._own.get(digest)

    def get(self, digest: bytes, now: float) -> bytes | None:
        if (own := self._own.get(digest)) is not None:
            return own
        kept = self._kept.get(digest)
        return kept.value if kept is not None and kept.expires > now else None

    def put_own(self, digest: bytes, value: bytes) -> None:
        """Keep one of our own, to be repeated to the mesh until withdrawn."""
        self._own[digest] = value
        self._rows.save(RowKind.OWN_MANIFEST, digest, b"", value, NEVER)

    def forget_own(self, digest: bytes) -> bool:
        if self._own.pop(digest, None) is None:
            return False
        self._rows.delete(RowKind.OWN_MANIFEST, digest, b"")
        return True

    def put(self, publisher: PeerId, digest: bytes, value: bytes, expires: float) -> Verdict:
        """Keep or refresh one of `publisher`'s; the caller has checked value against digest."""
        kept = self._kept.get(digest)
        if kept is not None:
            # Whoever put it first answers for it; anybody may keep it alive.
            publisher = kept.publisher
        else:
            verdict = self._room_for(publisher, digest, len(value))
            if verdict is not Verdict.STORED:
                self._counters.add("manifests_refused")
                return verdict
            self._insert(publisher, digest, value, expires)
        expires = expires if kept is None else max(expires, kept.expires)
        self._kept[digest] = _Kept(publisher, value, expires)
        self._rows.save(RowKind.MANIFEST, digest, publisher, value, expires)
        return Verdict.STORED

    def sweep(self, now: float) -> int:
        """Forget what has expired; returns how many that were."""
        expired = [digest for digest, kept in self._kept.items() if kept.expires <= now]
        for digest in expired:
            self._remove(digest)
        return len(expired)

    def restore(self, rows: Sequence[Row], now: float) -> None:
        """Take over rows of an earlier run; what has expired or rotted is dropped."""
        for kind, digest, publisher, value, expires in rows:
            try:
                check_manifest(digest, value)
            except (RefusedError, IntegrityError):
                expires = 0.0
            if expires <= now:
                self._rows.delete(RowKind(kind), digest, publisher)
            elif kind == RowKind.OWN_MANIFEST:
                self._own[digest] = value
            else:
                self._insert(PeerId(publisher), digest, value, expires)

    def _room_for(self, publisher: PeerId, digest: bytes, size: int) -> Verdict:
        if self._bytes_of.get(publisher, 0) + size > self._settings.max_record_bytes_per_peer:
            return Verdict.PEER_FULL
        while self.kept_bytes + size > self._settings.max_value_bytes:
            far = self._farthest.make_room(self._kept, digest)
            if far is None:
                return Verdict.FAR
            self._counters.add("manifests_evicted")
            self._remove(far)
        return Verdict.STORED

    def _insert(self, publisher: PeerId, digest: bytes, value: bytes, expires: float) -> None:
        self._kept[digest] = _Kept(publisher, value, expires)
        self._bytes_of[publisher] = self._bytes_of.get(publisher, 0) + len(value)
        self._farthest.added(digest)

    def _remove(self, digest: bytes) -> None:
        kept = self._kept.pop(digest)
        left = self._bytes_of[kept.publisher] - len(kept.value)
        if left:
            self._bytes_of[kept.publisher] = left
        else:
            del self._bytes_of[kept.publisher]
        self._rows.delete(RowKind.MANIFEST, digest, kept.publisher)
