"""All members of a small mesh and their newest records: pure, no clock of its own, no network.

Whom to count. A member proves itself by dealing with us. To meet five hundred before counting them
would be slow, so a peer that two of those we met vouch for counts too; one that a single member
names is *pending* until it is met or somebody else names it. To tell of a peer is to vouch for it:
only who counts here is told to others. A peer that three times did not answer us is *lost* and not
told any more, until there is news of it; so the dead vanish from the mesh by what everybody finds
out, and at the latest when their record ends.

How long to believe. A record says for how long it may be believed, and is passed on with what is
left of that, so that clocks need not agree. A teller can shorten or lengthen this by lying, but
never beyond the record's own time from when we first heard it, and what was over once does not
come back: its sequence number is remembered.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import blake2b

from .diversity import GroupOf, network_group
from .gossip_wire import HASH_BYTES, MAX_BITS, MAX_ROWS, Listing, Row, Told
from .peer_id import PeerId
from .peer_record import MAX_SEQ, PeerRecord

VOUCHERS = 2
MAX_UNMET_PER_GROUP = 64
_PER_STRETCH = 4
_REMEMBERED_GONE = 4096
_RESTORED_FOR = 180.0


class Heard(Enum):
    """What a record turned out to be."""

    NEWS = auto()
    """A member came, moved, or left: others should know at once."""
    REPEATED = auto()
    """A member says again what it said before."""
    PENDING = auto()
    """Of a peer that does not count yet."""
    KNOWN = auto()
    OLD = auto()
    """There is a newer one, or it was over once."""
    OURS = auto()
    """Of ourselves, and newer than what we said last: from an earlier run."""
    FULL = auto()


@dataclass(slots=True)
class _Entry:
    record: PeerRecord
    first_heard: float
    until: float
    teller: PeerId | None
    met: bool = False
    lost: bool = False
    restored: bool = False
    """Known from before a restart, and not heard of since."""
    counted: bool = False
    vouchers: set[object] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Gone:
    """A record that was over once must not come back: its number, and when it ends for sure."""

    peer: PeerId
    seq: int
    end: float
    leaving: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """After a comparison: names of records to ask for, records to give, and who counts now."""

    wanted: list[bytes]
    given: list[Told]
    news: list[PeerId]


def name_of(peer: PeerId) -> bytes:
    """The first bytes of a peer's position: enough to name it in a listing."""
    return peer.kad_id[:HASH_BYTES]


def _stretch(name: bytes, bits: int) -> int:
    return int.from_bytes(name[:2], "big") >> (16 - bits)


class MemberMap:
    """The map of one node. Times are of one monotonic clock, in seconds."""

    def __init__(self, own: PeerId, capacity: int, group_of: GroupOf = network_group) -> None:
        self._own = own
        self._capacity = capacity
        self._group_of = group_of
        self._entries: dict[PeerId, _Entry] = {}
        self._by_name: dict[bytes, PeerId] = {}
        self._gone: OrderedDict[bytes, _Gone] = OrderedDict()
        self._members: frozenset[PeerId] | None = None
        self._summary: tuple[int, bytes] | None = None

    # --- who is there -------------------------------------------------------------------------

    @property
    def members(self) -> frozenset[PeerId]:
        """Everybody who counts, without ourselves."""
        if self._members is None:
            counted = (peer for peer, entry in self._entries.items() if entry.counted)
            self._members = frozenset(counted) - {self._own}
        return self._members

    def record(self, peer: PeerId) -> PeerRecord | None:
        entry = self._entries.get(peer)
        return None if entry is None else entry.record

    def is_gone(self, peer: PeerId) -> bool:
        """Whether `peer` said goodbye, or does not answer us any more."""
        entry = self._entries.get(peer)
        return entry is not None and (entry.record.leaving or entry.lost)

    def is_pending(self, peer: PeerId) -> bool:
        """Whether `peer` was named and does not count yet, though it might."""
        entry = self._entries.get(peer)
        return entry is not None and not (entry.counted or entry.lost or entry.record.leaving)

    def pending(self, now: float, age: float) -> list[PeerId]:
        """Those that are pending and were first named `age` ago or earlier."""
        return [
            peer
            for peer, entry in self._entries.items()
            if entry.first_heard + age <= now and self.is_pending(peer)
        ]

    def unmet(self) -> list[PeerId]:
        """Members that count only because others vouch for them."""
        return [peer for peer in self.members if not self._entries[peer].met]

    def missing(self, now: float, age: float) -> list[PeerId]:
        """Peers that fell silent without a goodbye, up to `age` ago: they may be back some day."""
        lost = [peer for peer, entry in self._entries.items() if entry.lost]
        gone = [g.peer for g in self._gone.values() if not g.leaving and now < g.end + age]
        return lost + [peer for peer in gone if peer not in self._entries]

    def teller(self, peer: PeerId) -> PeerId | None:
        """Who was first to tell of `peer`; None when unknown, or when it was `peer` itself."""
        entry = self._entries.get(peer)
        return None if entry is None or entry.teller == peer else entry.teller

    # --- what is heard ------------------------------------------------------------------------

    def say(self, record: PeerRecord, now: float) -> None:
        """Our own newest record."""
        self._put(_Entry(record, now, now + record.lifetime, None, met=True, counted=True))

    def hear(
        self, record: PeerRecord, ttl: float, teller: PeerId, now: float, *, met: bool
    ) -> Heard:
        """Take note of a record that `teller` believes for another `ttl` seconds.

        `met`: whether we have dealt with the peer itself.
        """
        entry = self._entries.get(record.peer)
        if record.peer == self._own:
            newer = entry is None or record.seq > entry.record.seq
            return Heard.OURS if newer else Heard.KNOWN
        if entry is None:
            if ttl <= 0 or self._was_over(name_of(record.peer), record.seq, now):
                return Heard.OLD
            if not self._make_room(teller):
                return Heard.FULL
            until = now + min(ttl, record.lifetime)
            entry = _Entry(record, now, until, teller, met=met or teller == record.peer)
            self._put(entry)
            before = None
        elif record.seq < entry.record.seq:
            return Heard.OLD
        elif record.seq == entry.record.seq:
            return Heard.NEWS if self._vouched(entry, ttl, teller, now) else Heard.KNOWN
        else:
            before = entry.record if entry.counted or entry.record.leaving else None
            self._renew(entry, record, ttl, now)
            entry.met = entry.met or met or teller == record.peer
        self._add_voucher(entry, teller)
        self._settle(entry)
        if not self._is_told(entry):
            return Heard.PENDING
        same = before is not None and record.says_the_same_as(before)
        return Heard.REPEATED if same else Heard.NEWS

    def meet(self, peer: PeerId) -> bool:
        """`peer` has just dealt with us; returns whether that makes it a member."""
        entry = self._entries.get(peer)
        if entry is None or (entry.met and entry.counted):
            return False
        entry.met, entry.lost, entry.restored = True, False, False
        return self._settle(entry) and entry.counted

    def lose(self, peer: PeerId) -> bool:
        """`peer` does not answer us; returns whether it has counted until now."""
        entry = self._entries.get(peer)
        if entry is None or peer == self._own:
            return False
        entry.lost, entry.met = True, False
        entry.vouchers.clear()
        return self._settle(entry)

    def sweep(self, now: float) -> list[PeerId]:
        """Forget records whose time is over; returns whose they were."""
        over = [
            peer
            for peer, entry in self._entries.items()
            if entry.until <= now and peer != self._own
        ]
        for peer in over:
            self._drop(peer)
        return over

    def forget_unconfirmed(self) -> list[PeerId]:
        """Count no longer on members of an earlier run that nobody named; returns them."""
        unconfirmed = [peer for peer, entry in self._entries.items() if entry.restored]
        for peer in unconfirmed:
            self._drop(peer)
        return unconfirmed

    def clear(self) -> None:
        """Forget everybody but ourselves."""
        own = self._entries.get(self._own)
        self._entries.clear()
        self._by_name.clear()
        self._gone.clear()
        self._changed()
        if own is not None:
            self._put(own)

    def _renew(self, entry: _Entry, record: PeerRecord, ttl: float, now: float) -> None:
        entry.record, entry.first_heard = record, now
        entry.until = now + min(ttl, record.lifetime)
        entry.lost = entry.restored = False
        self._changed()

    def _vouched(self, entry: _Entry, ttl: float, teller: PeerId, now: float) -> bool:
        """`teller` believes the very record we have; returns whether that makes it news."""
        end = entry.first_heard + entry.record.lifetime
        entry.until = min(end, max(entry.until, now + ttl))
        if entry.lost:
            return False
        told = self._is_told(entry)
        if teller == entry.record.peer:
            entry.met = True
        self._add_voucher(entry, teller)
        entry.restored = False
        self._settle(entry)
        if self._is_told(entry) != told:
            self._changed()
            return not told
        return False

    def _add_voucher(self, entry: _Entry, teller: PeerId) -> None:
        """Only who counts vouches, and all of one network vouch as one."""
        voucher = self._entries.get(teller)
        if voucher is None or not (voucher.met and voucher.counted):
            return
        if len(entry.vouchers) < VOUCHERS:
            entry.vouchers.add(self._group_of(voucher.record.addresses) or teller)

    def _settle(self, entry: _Entry) -> bool:
        """Decide anew whether a peer counts; returns whether that changed."""
        vouched = entry.restored or len(entry.vouchers) >= VOUCHERS
        counts = not (entry.record.leaving or entry.lost) and (entry.met or vouched)
        if counts and not entry.counted and not entry.met and self._is_crowded(entry):
            counts = False
        changed = counts != entry.counted
        entry.counted = counts
        if changed:
            self._changed()
        return changed

    def _is_crowded(self, entry: _Entry) -> bool:
        group = self._group_of(entry.record.addresses)
        if group is None:
            return False
        others = (self._entries[peer].record.addresses for peer in self.unmet())
        return sum(self._group_of(addresses) == group for addresses in others) >= (
            MAX_UNMET_PER_GROUP
        )

    def _is_told(self, entry: _Entry) -> bool:
        if entry.record.leaving:
            return entry.met or len(entry.vouchers) >= VOUCHERS
        return entry.counted and not entry.restored

    # --- the table ----------------------------------------------------------------------------

    def _put(self, entry: _Entry) -> None:
        peer = entry.record.peer
        self._entries[peer] = entry
        self._by_name[name_of(peer)] = peer
        self._changed()

    def _drop(self, peer: PeerId) -> None:
        entry, name = self._entries.pop(peer), name_of(peer)
        self._by_name.pop(name, None)
        end = entry.first_heard + entry.record.lifetime
        self._gone[name] = _Gone(peer, entry.record.seq, end, entry.record.leaving)
        self._gone.move_to_end(name)
        while len(self._gone) > _REMEMBERED_GONE:
            self._gone.popitem(last=False)
        self._changed()

    def _was_over(self, name: bytes, seq: int, now: float) -> bool:
        gone = self._gone.get(name)
        return gone is not None and (seq < gone.seq or (seq == gone.seq and now >= gone.end))

    def _make_room(self, teller: PeerId) -> bool:
        """When full, whoever told of most peers that do not count loses the oldest of these."""
        if len(self._entries) < self._capacity:
            return True
        loose = [entry for entry in self._entries.values() if not self._is_told(entry)]
        loose = [entry for entry in loose if entry.record.peer != self._own]
        if not loose:
            return False
        by_teller = Counter(entry.teller for entry in loose)
        by_teller[teller] += 1
        most = max(by_teller.values())
        victim = next((e for e in loose if by_teller[e.teller] == most), None)
        if victim is None or victim.teller == teller:
            return False
        del self._entries[victim.record.peer]
        self._by_name.pop(name_of(victim.record.peer), None)
        return True

    def _changed(self) -> None:
        self._members = self._summary = None

    # --- comparing ----------------------------------------------------------------------------

    @property
    def bits(self) -> int:
        """Into how many stretches to cut the keyspace for a comparison, as a power of two."""
        return min(MAX_BITS, (len(self._entries) // _PER_STRETCH).bit_length())

    def summary(self, bits: int) -> bytes:
        """A hash for each of 2 ** `bits` stretches, over whom we vouch for and their numbers."""
        if self._summary is None or self._summary[0] != bits:
            items: list[list[bytes]] = [[] for _ in range(1 << bits)]
            for entry in self._told():
                name = name_of(entry.record.peer)
                items[_stretch(name, bits)].append(name + entry.record.seq.to_bytes(8, "big"))
            hashes = (
                blake2b(b"".join(sorted(of_stretch)), digest_size=HASH_BYTES).digest()
                for of_stretch in items
            )
            self._summary = bits, b"".join(hashes)
        return self._summary[1]

    def listing(self, bits: int, summary: bytes, now: float) -> Listing:
        """What we know in the stretches in which `summary` differs from ours."""
        ours = self.summary(bits)
        differing = {
            at // HASH_BYTES
            for at in range(0, len(ours), HASH_BYTES)
            if ours[at : at + HASH_BYTES] != summary[at : at + HASH_BYTES]
        }
        rows = []
        for entry in self._told():
            name = name_of(entry.record.peer)
            if _stretch(name, bits) in differing and entry.until > now:
                rows.append(Row(name, entry.record.seq, _seconds_left(entry, now)))
        if len(rows) > MAX_ROWS:
            raise ValueError("a map holds no more than a listing")
        return Listing(frozenset(differing), tuple(rows))

    def compare(self, bits: int, listing: Listing, teller: PeerId, now: float) -> Difference:
        """What to ask of `teller` and to give it, after it listed what it knows."""
        theirs: dict[bytes, int] = {}
        wanted: list[bytes] = []
        news: list[PeerId] = []
        for row in listing.rows:
            if row.seq > MAX_SEQ or row.name in theirs:
                continue
            theirs[row.name] = row.seq
            peer = self._by_name.get(row.name)
            if peer is None:
                if row.ttl and not self._was_over(row.name, row.seq, now):
                    wanted.append(row.name)
                continue
            entry = self._entries[peer]
            if row.seq > entry.record.seq:
                wanted.append(row.name)
            elif row.seq == entry.record.seq and self._vouched(entry, row.ttl, teller, now):
                news.append(peer)
        given = [
            Told(entry.record.encoded, _seconds_left(entry, now))
            for entry in self._told()
            if _stretch(name_of(entry.record.peer), bits) in listing.differing
            and entry.record.seq > theirs.get(name_of(entry.record.peer), 0)
            and entry.until > now
        ]
        return Difference(wanted, given, news)

    def tell(self, peers: Iterable[PeerId], now: float) -> list[Told]:
        """The records of those of `peers` we vouch for."""
        entries = (self._entries.get(peer) for peer in peers)
        return [
            Told(entry.record.encoded, _seconds_left(entry, now))
            for entry in entries
            if entry is not None and self._is_told(entry) and entry.until > now
        ]

    def named(self, names: Iterable[bytes]) -> list[PeerId]:
        """The peers that `names` name, as far as known."""
        return [self._by_name[name] for name in names if name in self._by_name]

    def _told(self) -> Iterator[_Entry]:
        return (entry for entry in self._entries.values() if self._is_told(entry))

    # --- across restarts ----------------------------------------------------------------------

    def lasting(self, now: float) -> list[tuple[PeerRecord, float]]:
        """What is worth saving: records of members and ours, and for how long each is good."""
        return [
            (entry.record, max(0.0, entry.until - now))
            for entry in self._entries.values()
            if entry.counted
        ]

    def restore(self, record: PeerRecord, now: float) -> bool:
        """Count on a member of an earlier run, for minutes, unless somebody confirms it."""
        if record.peer == self._own or record.leaving or len(self._entries) >= self._capacity:
            return False
        lifetime = min(record.lifetime, _RESTORED_FOR)
        entry = _Entry(record, now, now + lifetime, None, restored=True)
        entry.vouchers.add(self._own)
        self._put(entry)
        self._settle(entry)
        return True


def _seconds_left(entry: _Entry, now: float) -> int:
    return max(1, int(entry.until - now))
