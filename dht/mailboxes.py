"""Notices this node keeps for recipients. In memory, written behind.

Bounded per recipient, per sender and recipient, per peer that brought them, and in all. A full
mailbox gives up a notice of the sender that has the most in it, for one of a sender with fewer:
nobody can keep others from reaching a recipient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import FormatError, RefusedError
from .backend import Row, RowKind, RowWriter
from .counters import Counters
from .notices import (
    MAX_BUNDLE_BYTES,
    MAX_NOTICE_LIFETIME,
    MAX_NOTICES_PER_KEY,
    Notice,
    decode_notice,
    encode_bundle,
)
from .peer_id import PeerId
from .records_wire import Verdict
from .settings import DhtSettings
from .unchecked import Unchecked
from .validators import check_lifetime

_BROUGHT_PER_BOX = 24
"""Notices in one mailbox that one peer brought, whoever signed them."""


@dataclass(frozen=True, slots=True)
class KeptNotice:
    """`publisher` brought it; it is kept until `expires` (Unix time)."""

    notice: Notice
    publisher: PeerId
    expires: float


def check_notice(key: bytes, value: bytes, now: float) -> Notice:
    """Check one notice given to be kept under `key`.

    Raises:
        FormatError: not a notice, or of another recipient.
        IntegrityError: forged.
        RefusedError: sound, but expired.
    """
    notice = decode_notice(value)
    if notice.key != key:
        raise FormatError("A notice under the key of another recipient.")
    check_lifetime(notice.expires, MAX_NOTICE_LIFETIME, now, "A notice")
    return notice


class Mailboxes:
    """key of a recipient -> the notices kept for it, and our own notices to others.

    Invariant: `_bytes_of[p]` is the total size of what p brought, `_bytes` that of everything.
    """

    def __init__(self, settings: DhtSettings, rows: RowWriter, counters: Counters) -> None:
        self._settings = settings
        self._rows = rows
        self._counters = counters
        self._boxes: dict[bytes, dict[bytes, KeptNotice]] = {}
        self._own: dict[bytes, Notice] = {}
        self._bytes_of: Counter[PeerId] = Counter()
        self._bytes = 0
        self._unchecked = Unchecked()
        self._restored_at = 0.0

    def __len__(self) -> int:
        """Notices of others."""
        return sum(len(box) for box in self._boxes.values())

    @property
    def kept_bytes(self) -> int:
        return self._bytes

    def own(self) -> list[Notice]:
        """Notices of ours, to be repeated until they expire."""
        return list(self._own.values())

    def put_own(self, notice: Notice) -> None:
        self._own[notice.id] = notice
        row = (RowKind.OWN_NOTICE, notice.key, notice.id, notice.encoded, float(notice.expires))
        self._rows.save(*row)

    def kept(self, now: float) -> Iterator[tuple[bytes, KeptNotice]]:
        """Every notice of others that has not expired, and its key."""
        boxes = [(key, list(box.values())) for key, box in self._boxes.items()]
        return ((key, kept) for key, box in boxes for kept in box if kept.expires > now)

    def bundle(self, key: bytes, now: float) -> bytes | None:
        """All notices under `key` as one value; None when there are none."""
        self._recall(key)
        box = self._boxes.get(key, {})
        notices = {i: kept.notice for i, kept in box.items() if kept.expires > now}
        notices |= {i: n for i, n in self._own.items() if n.key == key and n.expires > now}
        if not notices:
            return None
        newest = sorted(notices.values(), key=lambda n: n.created, reverse=True)
        out: list[bytes] = []
        room = MAX_BUNDLE_BYTES
        for notice in newest[:MAX_NOTICES_PER_KEY]:
            # Only with ours among them can there be more than fits.
            if len(notice.encoded) <= room:
                out.append(notice.encoded)
                room -= len(notice.encoded)
        return encode_bundle(out)

    def put(self, publisher: PeerId, notice: Notice, until: float) -> Verdict:
        """Keep or refresh a notice that `publisher` brought; it has been checked."""
        self._recall(notice.key)
        box = self._boxes.get(notice.key, {})
        until = min(until, float(notice.expires))
        name = notice.id
        known = box.get(name)
        if known is not None:
            publisher, until = known.publisher, max(until, known.expires)
        elif (verdict := self._room_for(publisher, notice)) is not Verdict.STORED:
            self._counters.add("notices_refused")
            return verdict
        self._insert(publisher, notice, until)
        self._rows.save(RowKind.NOTICE, notice.key, name, notice.encoded, until)
        return Verdict.STORED

    def sweep(self, now: float) -> int:
        """Forget what has expired; returns how many notices of others that were."""
        boxes = self._boxes.values()
        gone = [k.notice for box in boxes for k in box.values() if k.expires <= now]
        for notice in gone:
            self._remove(notice)
        for name in [name for name, notice in self._own.items() if notice.expires <= now]:
            self._rows.delete(RowKind.OWN_NOTICE, self._own.pop(name).key, name)
        return len(gone)

    def restore(self, rows: Sequence[Row], now: float) -> None:
        """Take over rows of an earlier run; what has expired or rotted is dropped.

        Others' notices are checked when their mailbox is used, and all of them by `check_saved`.
        """
        self._restored_at = now
        for row in rows:
            kind, key, name, _, _ = row
            if kind != RowKind.OWN_NOTICE:
                self._unchecked.add(key, row)
            elif (notice := self._still_valid(row)) is None:
                self._rows.delete(RowKind.OWN_NOTICE, key, name)
            else:
                self._own[notice.id] = notice

    async def check_saved(self) -> None:
        """Check what `restore` took over, a slice at a time."""
        await self._unchecked.check_all(self._recall)

    def _recall(self, key: bytes) -> None:
        """Keep again what an earlier run kept in a mailbox, if it was not looked at yet."""
        for row in self._unchecked.take(key):
            notice = self._still_valid(row)
            # Who brought it is not saved: its sender answers for it.
            if notice is None or self._room_for(notice.sender, notice) is not Verdict.STORED:
                self._rows.delete(RowKind.NOTICE, key, row[2])
            else:
                self._insert(notice.sender, notice, row[4])

    def _still_valid(self, row: Row) -> Notice | None:
        _, key, _, value, expires = row
        try:
            notice = check_notice(key, value, self._restored_at)
        except (FormatError, RefusedError):
            return None
        return notice if expires > self._restored_at else None

    def _room_for(self, publisher: PeerId, notice: Notice) -> Verdict:
        """Make room in the mailbox, or say why there is none."""
        size, settings = len(notice.encoded), self._settings
        box = list(self._boxes.get(notice.key, {}).values())
        of_sender = Counter(kept.notice.sender for kept in box)
        if of_sender[notice.sender] >= settings.max_notices_per_sender:
            return Verdict.PEER_FULL
        if sum(1 for kept in box if kept.publisher == publisher) >= _BROUGHT_PER_BOX:
            # Keys to sign with are free; being a member is not.
            return Verdict.PEER_FULL
        if self._bytes_of[publisher] + size > settings.max_notice_bytes_per_peer:
            return Verdict.PEER_FULL
        if self._bytes + size > settings.max_notice_bytes:
            return Verdict.FAR
        while box and (
            len(box) >= MAX_NOTICES_PER_KEY
            or sum(len(kept.notice.encoded) for kept in box) + size > MAX_BUNDLE_BYTES
        ):
            most = max(of_sender.values())
            if most <= of_sender[notice.sender] + 1:
                return Verdict.FAR
            crowded = [kept for kept in box if of_sender[kept.notice.sender] == most]
            oldest = min(crowded, key=lambda kept: (kept.notice.created, kept.notice.id))
            box.remove(oldest)
            of_sender[oldest.notice.sender] -= 1
            self._counters.add("notices_evicted")
            self._remove(oldest.notice)
        return Verdict.STORED

    def _insert(self, publisher: PeerId, notice: Notice, expires: float) -> None:
        box = self._boxes.setdefault(notice.key, {})
        name = notice.id
        if name not in box:
            self._bytes_of[publisher] += len(notice.encoded)
            self._bytes += len(notice.encoded)
        box[name] = KeptNotice(notice, publisher, expires)

    def _remove(self, notice: Notice) -> None:
        box = self._boxes[notice.key]
        kept = box.pop(notice.id)
        if not box:
            del self._boxes[notice.key]
        self._bytes -= len(notice.encoded)
        self._bytes_of[kept.publisher] -= len(notice.encoded)
        if not self._bytes_of[kept.publisher]:
            del self._bytes_of[kept.publisher]
        self._rows.delete(RowKind.NOTICE, notice.key, notice.id)
