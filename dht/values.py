"""Values this node keeps under checked keys: our own, and others' for the mesh.

In memory, written behind. Nobody can pass off what the validators refuse; each value is accounted
to the peer that brought it first, bounded in number and bytes per peer and in all, far ones going
first. Our own are neither bounded nor evicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import FormatError, RefusedError
from .backend import NEVER, Row, RowKind, RowWriter
from .counters import Counters
from .eviction import FarthestFirst
from .keyspace import DIGEST_BYTES, MANIFEST_NAMESPACE, manifest_key, peer_position, position
from .peer_id import PeerId
from .records_wire import Verdict
from .settings import DhtSettings
from .unchecked import Unchecked
from .validators import Checked, Validators


@dataclass(frozen=True, slots=True)
class Kept:
    """One value: who answers for it here, and until when (Unix time) it is kept."""

    publisher: PeerId
    value: bytes
    checked: Checked
    expires: float


@dataclass(slots=True)
class _Share:
    """What one peer answers for."""

    values: int = 0
    size: int = 0


class ValueStore:
    """key -> value, for every namespace with single values.

    Invariant: `_shares[p]` counts exactly the foreign values accounted to p.
    """

    def __init__(
        self,
        own: PeerId,
        settings: DhtSettings,
        rows: RowWriter,
        counters: Counters,
        validators: Validators,
    ) -> None:
        self._settings = settings
        self._validators = validators
        self._rows = rows
        self._counters = counters
        self._own: dict[bytes, tuple[bytes, Checked]] = {}
        self._kept: dict[bytes, Kept] = {}
        self._shares: dict[PeerId, _Share] = {}
        self._kept_of: Counter[bytes] = Counter()
        self._bytes = 0
        self._farthest = FarthestFirst(peer_position(own), position)
        self._unchecked = Unchecked()
        self._restored_at = 0.0

    def __len__(self) -> int:
        """Values of others."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes of others' values."""
        return self._bytes

    def kept_of(self, namespace: bytes) -> int:
        """How many values of others are of `namespace`."""
        return self._kept_of[namespace]

    def own_keys(self, namespace: bytes | None = None) -> list[bytes]:
        """Keys of our own values."""
        return [k for k in self._own if namespace is None or k[:-DIGEST_BYTES] == namespace]

    def own_value(self, key: bytes) -> bytes | None:
        own = self._own.get(key)
        return None if own is None else own[0]

    def kept(self, now: float) -> Iterator[tuple[bytes, Kept]]:
        """Others' values that have not expired."""
        return ((key, kept) for key, kept in list(self._kept.items()) if kept.expires > now)

    def get(self, key: bytes, now: float) -> tuple[bytes, Checked] | None:
        """The valid value of `key`: of our own and the kept one, the newer."""
        self._recall(key)
        own, kept = self._own.get(key), self._kept.get(key)
        found = [own] if own is not None and own[1].expires > now else []
        if kept is not None and kept.expires > now:
            found.append((kept.value, kept.checked))
        return max(found, key=lambda entry: entry[1].rank, default=None)

    def put_own(self, key: bytes, value: bytes, checked: Checked) -> None:
        """Keep one of our own, to be repeated to the mesh until it expires or is withdrawn."""
        self._own[key] = (value, checked)
        kind, row_key = _row_of(key, own=True)
        self._rows.save(kind, row_key, b"", value, min(checked.expires, NEVER))

    def forget_own(self, key: bytes) -> bool:
        if self._own.pop(key, None) is None:
            return False
        kind, row_key = _row_of(key, own=True)
        self._rows.delete(kind, row_key, b"")
        return True

    def put(
        self, publisher: PeerId, key: bytes, value: bytes, checked: Checked, until: float
    ) -> Verdict:
        """Keep or refresh what `publisher` brought; `checked` is what its validator said.

        Whoever brought a value first answers for it; anybody may keep it alive. Who made it takes
        it over.
        """
        self._recall(key)
        kept = self._kept.get(key)
        if kept is not None and checked.rank < kept.checked.rank:
            return Verdict.OUTDATED
        until = min(until, checked.expires)
        if kept is not None and kept.value == value:
            until = max(until, kept.expires)
        if kept is not None and publisher != checked.signer:
            publisher = kept.publisher
        verdict = self._room_for(publisher, key, len(value), kept)
        if verdict is not Verdict.STORED:
            self._counters.add("values_refused")
            return verdict
        self._insert(publisher, key, value, checked, until)
        kind, row_key = _row_of(key, own=False)
        if kept is not None and kept.publisher != publisher:
            self._rows.delete(kind, row_key, kept.publisher)
        self._rows.save(kind, row_key, publisher, value, until)
        return Verdict.STORED

    def sweep(self, now: float) -> int:
        """Forget what has expired; returns how many values of others that were."""
        expired = [key for key, kept in self._kept.items() if kept.expires <= now]
        for key in expired:
            self._remove(key)
        for key in [key for key, (_, checked) in self._own.items() if checked.expires <= now]:
            self.forget_own(key)
        return len(expired)

    def restore(self, rows: Sequence[Row], now: float) -> None:
        """Take over rows of an earlier run; what has expired or rotted is dropped.

        Others' values are checked when they are asked for, and all of them by `check_saved`.
        """
        self._restored_at = now
        for row in rows:
            kind, row_key, publisher, value, _ = row
            manifest = kind in (RowKind.MANIFEST, RowKind.OWN_MANIFEST)
            key = manifest_key(row_key) if manifest else row_key
            if kind not in (RowKind.OWN_MANIFEST, RowKind.OWN_VALUE):
                self._unchecked.add(key, row)
                continue
            try:
                self._own[key] = (value, self._validators.check(key, value, now))
            except (FormatError, RefusedError):
                self._rows.delete(RowKind(kind), row_key, publisher)

    async def check_saved(self) -> None:
        """Check what `restore` took over, a slice at a time."""
        await self._unchecked.check_all(self._recall)

    def _recall(self, key: bytes) -> None:
        """Keep again what an earlier run kept under `key`, if it was not looked at yet."""
        for kind, row_key, publisher, value, expires in self._unchecked.take(key):
            try:
                checked = self._validators.check(key, value, self._restored_at)
            except (FormatError, RefusedError):
                self._rows.delete(RowKind(kind), row_key, publisher)
                continue
            peer = PeerId(publisher)
            room = self._room_for(peer, key, len(value), self._kept.get(key))
            if room is Verdict.STORED and expires > self._restored_at:
                self._insert(peer, key, value, checked, expires)
            else:
                self._rows.delete(RowKind(kind), row_key, publisher)

    def _room_for(self, publisher: PeerId, key: bytes, size: int, kept: Kept | None) -> Verdict:
        """Evict until the value fits, or say why it does not."""
        old = 0 if kept is None else len(kept.value)
        mine = kept is not None and kept.publisher == publisher
        if not mine or size > old:
            share = self._shares.get(publisher, _Share())
            held = share.size + size - (old if mine else 0)
            values = share.values + (0 if mine else 1)
            if held > self._settings.max_record_bytes_per_peer:
                return Verdict.PEER_FULL
            if values > self._settings.max_values_per_peer:
                return Verdict.PEER_FULL
        while self._bytes - old + size > self._settings.max_value_bytes:
            far = self._farthest.make_room(self._kept, key)
            if far is None:
                return Verdict.FAR
            self._counters.add("values_evicted")
            self._remove(far)
        return Verdict.STORED

    def _insert(
        self, publisher: PeerId, key: bytes, value: bytes, checked: Checked, expires: float
    ) -> None:
        if key in self._kept:
            self._account(key, self._kept[key], -1)
        else:
            self._farthest.added(key)
        self._kept[key] = kept = Kept(publisher, value, checked, expires)
        self._account(key, kept, 1)

    def _remove(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        self._account(key, kept, -1)
        kind, row_key = _row_of(key, own=False)
        self._rows.delete(kind, row_key, kept.publisher)

    def _account(self, key: bytes, kept: Kept, sign: int) -> None:
        share = self._shares.setdefault(kept.publisher, _Share())
        share.values += sign
        share.size += sign * len(kept.value)
        if not share.values:
            del self._shares[kept.publisher]
        self._bytes += sign * len(kept.value)
        self._kept_of[key[:-DIGEST_BYTES]] += sign


def _row_of(key: bytes, *, own: bool) -> tuple[RowKind, bytes]:
    """How a value is filed: manifests by their digest, as they were before there were others."""
    if key[:-DIGEST_BYTES] == MANIFEST_NAMESPACE:
        return RowKind.OWN_MANIFEST if own else RowKind.MANIFEST, key[-DIGEST_BYTES:]
    return RowKind.OWN_VALUE if own else RowKind.VALUE, key
