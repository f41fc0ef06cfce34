"""Answers on `/meshnode/records/1`, from memory and without waiting."""

from __future__ import annotations

from collections.abc import Callable

from .budget import Budgets
from .context import DhtContext
from .kad_wire import PeerAddresses
from .keyspace import peer_position
from .peer_id import PeerId
from .records import ChunkRecords, expires_of, packed, size_of
from .records_wire import (
    BUSY,
    MAX_HOLDER_PEERS,
    MAX_HOLDER_ROWS,
    MAX_NEIGHBOURS,
    Announce,
    Answer,
    Find,
    Found,
    Holder,
    HolderPeer,
    Near,
    Neighbours,
    Refused,
    Request,
    Verdicts,
    Withdraw,
    Withdrawn,
)

_ADDRESSES_PER_HOLDER = 4
_KEYS_PER_QUESTION = 16


class RecordsAnswers:
    """The answering side of the batched protocol.

    `withdrawn` hears of everything a peer withdraws.
    """

    def __init__(
        self,
        context: DhtContext,
        budgets: Budgets,
        chunks: ChunkRecords,
        withdrawn: Callable[[PeerId, tuple[bytes, ...]], None],
    ) -> None:
        self._context = context
        self._own = context.own
        self._contacts = context.contacts
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._budgets = budgets
        self._chunks = chunks
        self._withdrawn = withdrawn

    def answer(self, sender: PeerId, request: Request) -> Answer:
        match request:
            case Announce(digests=digests) | Withdraw(digests):
                wait = self._budgets.write(sender, max(1, len(digests)))
            case Find(digests, _):
                wait = self._budgets.ask(sender, max(_KEYS_PER_QUESTION, len(digests)))
            case Near(targets, _):
                wait = self._budgets.ask(sender, _KEYS_PER_QUESTION * (1 + len(targets)))
        if wait:
            return Refused(BUSY, wait)
        match request:
            case Announce():
                return self._keep(sender, request)
            case Find(digests, limit):
                return self._find(digests, limit)
            case Withdraw(digests):
                self._withdrawn(sender, digests)
                return Withdrawn(self._chunks.withdraw(sender, digests))
            case Near(targets, addresses):
                self._contacts.learn([PeerAddresses(sender, addresses)])
                return self._near(sender, targets)

    def _keep(self, sender: PeerId, request: Announce) -> Verdicts | Refused:
        if sender == self._own:
            return Refused("a node does not announce to itself")
        expires = self._wall_clock() + min(request.ttl, self._settings.record_ttl)
        verdicts = self._chunks.put_all(
            sender, request.zone, request.digests, request.sizes, expires
        )
        self._counters.add("records_received", len(verdicts))
        return Verdicts(verdicts)

    def _find(self, digests: tuple[bytes, ...], limit: int) -> Found:
        reader = _Holders(self._context, self._chunks)
        limit = min(limit, MAX_HOLDER_ROWS // max(1, len(digests)))
        rows = tuple(reader.of(digest, limit) for digest in digests)
        return Found(tuple(reader.peers), rows)

    def _near(self, sender: PeerId, targets: tuple[int, ...]) -> Neighbours:
        own = self._own
        table = self._contacts.table
        index = table.index()
        bits = table.complete_bits()
        around = index.under(peer_position(own), bits)
        while len(around) > MAX_NEIGHBOURS // 2:
            bits += 1
            around = index.under(peer_position(own), bits)
        wanted = dict.fromkeys(around)
        room = (MAX_NEIGHBOURS - len(around)) // max(1, len(targets))
        for target in targets:
            wanted.update(dict.fromkeys(index.closest(target, min(room, self._settings.k))))
        wanted.pop(sender, None)
        return Neighbours(bits, self._contacts.describe(list(wanted)[:MAX_NEIGHBOURS]))


class _Holders:
    """Rows of one answer about many chunks. Those of the same holders are one and the same row."""

    def __init__(self, context: DhtContext, chunks: ChunkRecords) -> None:
        self.peers: list[HolderPeer] = []
        self._context = context
        self._chunks = chunks
        self._now = context.wall_clock()
        self._index_of: dict[PeerId, int | None] = {}
        self._made: dict[tuple[int, PeerId], tuple[Holder, ...]] = {}

    def of(self, digest: bytes, limit: int) -> tuple[Holder, ...]:
        """At most `limit` holders, longest-lived first."""
        kept = self._chunks.kept_for(digest)
        own_size = self._chunks.own_size(digest)
        if own_size is None and len(kept) == 1:
            return self._row(kept[0])
        settings = self._context.settings
        if own_size is not None:
            ends = int(self._now + settings.record_ttl)
            kept = [*kept, (packed(own_size, ends), self._context.own)]
        longest = sorted(kept, key=_expires, reverse=True)
        return tuple(holder for record in longest for holder in self._row(record))[:limit]

    def _row(self, record: tuple[int, PeerId]) -> tuple[Holder, ...]:
        """One holder, or none: it has expired, or the table of peers is full."""
        row = self._made.get(record)
        if row is None:
            number, peer = record
            left = int(expires_of(number) - self._now)
            index = self._index(peer) if expires_of(number) > self._now else None
            row = () if index is None else (Holder(index, size_of(number), max(1, left)),)
            self._made[record] = row
        return row

    def _index(self, peer: PeerId) -> int | None:
        if peer in self._index_of:
            return self._index_of[peer]
        index = None
        if len(self.peers) < MAX_HOLDER_PEERS:
            index = len(self.peers)
            (known,) = self._context.contacts.describe([peer])
            own = peer == self._context.own
            zone = self._context.settings.zone if own else self._chunks.zone_of(peer)
            self.peers.append(HolderPeer(peer, zone, known.addresses[:_ADDRESSES_PER_HOLDER]))
        self._index_of[peer] = index
        return index


def _expires(record: tuple[int, PeerId]) -> int:
    return expires_of(record[0])
