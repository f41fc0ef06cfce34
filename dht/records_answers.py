"""Answers on `/meshnode/records/1`, from memory and without waiting."""

from __future__ import annotations

from collections.abc import Callable

from .budget import Budgets
from .context import DhtContext
from .kad_wire import PeerAddresses
from .keyspace import PeerIndex, peer_position
from .peer_id import PeerId
from .records import ChunkRecords
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
        chunks = zip(request.digests, request.sizes, strict=True)
        zone = request.zone
        put = self._chunks.put
        verdicts = tuple(put(sender, zone, digest, size, expires) for digest, size in chunks)
        self._counters.add("records_received", len(verdicts))
        return Verdicts(verdicts)

    def _find(self, digests: tuple[bytes, ...], limit: int) -> Found:
        now = self._wall_clock()
        limit = min(limit, MAX_HOLDER_ROWS // max(1, len(digests)))
        table: dict[PeerId, int] = {}
        peers: list[HolderPeer] = []
        rows: list[tuple[Holder, ...]] = []
        for digest in digests:
            row: list[Holder] = []
            for record in self._chunks.holders(digest, now)[:limit]:
                if record.peer not in table:
                    if len(peers) == MAX_HOLDER_PEERS:
                        continue
                    table[record.peer] = len(peers)
                    (known,) = self._contacts.describe([record.peer])
                    addresses = known.addresses[:_ADDRESSES_PER_HOLDER]
                    peers.append(HolderPeer(record.peer, record.zone, addresses))
                index = table[record.peer]
                row.append(Holder(index, record.size, max(1, int(record.expires - now))))
            rows.append(tuple(row))
        return Found(tuple(peers), tuple(rows))

    def _near(self, sender: PeerId, targets: tuple[int, ...]) -> Neighbours:
        own = self._own
        table = self._contacts.table
        index = PeerIndex([own, *table])
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
