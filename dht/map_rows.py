"""The member map on disk: the signed record of each member, and its last round trip."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import msgpack
import trio

from ..errors import FormatError
from .backend import Row, RowKind
from .context import DhtContext
from .member_map import MemberMap
from .peer_id import PeerId
from .peer_record import PeerRecord, decode_record
from .plain_msgpack import unpack

_MAX_SAVED = 2000
_SAVED_FOR = 30 * 24 * 3600.0


class MapRows:
    """Saves what changed, and brings it back after a restart."""

    def __init__(self, context: DhtContext, realm: bytes) -> None:
        self._context = context
        self._realm = realm
        self._saved: dict[PeerId, int] = {}

    def save(self, members: MemberMap) -> None:
        """Hand the records of members, and ours, to the backend: those that changed."""
        rows, wall = self._context.rows, self._context.wall_clock()
        lasting = members.lasting(trio.current_time())[:_MAX_SAVED]
        for peer in self._saved.keys() - {record.peer for record, _ in lasting}:
            rows.delete(RowKind.PEER_RECORD, bytes(peer), b"")
            del self._saved[peer]
        for record, left in lasting:
            if self._saved.get(record.peer) != record.seq:
                self._saved[record.peer] = record.seq
                rtt = self._context.contacts.health.rtt(record.peer)
                value: bytes = msgpack.packb([record.encoded, rtt])
                until = wall + left + _SAVED_FOR
                rows.save(RowKind.PEER_RECORD, bytes(record.peer), b"", value, until)

    def load(self, rows: Iterable[Row]) -> list[PeerRecord]:
        """The records of an earlier run; addresses and round trips are taken over at once.

        Rows that make no sense are deleted.
        """
        out: list[PeerRecord] = []
        for _, key, _, value, _ in list(rows)[:_MAX_SAVED]:
            try:
                record, rtt = _decode_row(value, self._realm)
            except FormatError:
                self._context.rows.delete(RowKind.PEER_RECORD, key, b"")
                continue
            self._saved[record.peer] = record.seq
            self._context.host.add_addresses(record.peer, record.addresses)
            if rtt is not None:
                self._context.contacts.health.restore_rtt(record.peer, rtt)
            out.append(record)
        return out


def _decode_row(value: bytes, realm: bytes) -> tuple[PeerRecord, float | None]:
    match unpack(value):
        case [bytes(encoded), (float() | None) as rtt] if rtt is None or 0 <= rtt < inf:
            return decode_record(encoded, realm), rtt
    raise FormatError("The saved row of a peer record has an unknown shape.")
