"""The member map: who counts, for how long, and what comparing two maps does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from meshnode.dht.gossip_wire import Listing, Row, Told
from meshnode.dht.member_map import MAX_UNMET_PER_GROUP, Heard, MemberMap, name_of
from meshnode.dht.peer_id import PeerId
from meshnode.dht.peer_record import PeerRecord

LIFETIME = 3600


def peer(number: int) -> PeerId:
    return PeerId.from_ed25519(number.to_bytes(32, "big"))


OWN, ANNA, BERT, CARL, DORA = (peer(i) for i in range(5))


def said(who: PeerId, seq: int = 1, *, leaving: bool = False, at: str = "") -> PeerRecord:
    addresses = (at or f"/ip4/10.0.0.{bytes(who)[-1]}/tcp/1",)
    encoded = b"%d:%d:" % (seq, leaving) + bytes(who) + at.encode()
    return PeerRecord(who, seq, LIFETIME, leaving, addresses, "", encoded)


@dataclass
class Node:
    """A map and the records it may hear, without signatures."""

    own: PeerId
    map: MemberMap = field(init=False)

    def __post_init__(self) -> None:
        self.map = MemberMap(self.own, capacity=2000)
        self.map.say(said(self.own), 0.0)

    def hear(
        self,
        record: PeerRecord,
        teller: PeerId,
        now: float = 0.0,
        *,
        ttl: float = LIFETIME,
        met: bool = False,
    ) -> Heard:
        return self.map.hear(record, ttl, teller, now, met=met)

    def meet(self, *others: PeerId) -> None:
        for other in others:
            assert self.hear(said(other), other) is Heard.NEWS


def compared(node: Node, other: Node, now: float = 0.0) -> tuple[int, int]:
    """Make two maps equal as `Gossip` does; returns how many records went each way."""
    records = {
        told.record: record
        for one in (node, other)
        for record, told in (
            (record, one.map.tell([record.peer], now)[0])
            for record, _ in one.map.lasting(now)
            if one.map.tell([record.peer], now)
        )
    }
    bits = node.map.bits
    listing = other.map.listing(bits, node.map.summary(bits), now)
    found = node.map.compare(bits, listing, other.own, now)
    got = other.map.tell(other.map.named(found.wanted), now)

    def hear(hearing: Node, all_told: list[Told], teller: PeerId) -> None:
        ordered = sorted(all_told, key=lambda told: records[told.record].peer != teller)
        for told in ordered:
            hearing.hear(records[told.record], teller, now, ttl=told.ttl)

    hear(other, found.given, node.own)
    hear(node, got, other.own)
    return len(got), len(found.given)


def test_who_deals_with_us_counts_at_once() -> None:
    node = Node(OWN)
    node.meet(ANNA)
    assert node.map.members == {ANNA}
    assert node.hear(said(BERT), ANNA, met=True) is Heard.NEWS
    assert node.map.members == {ANNA, BERT}
    assert OWN not in node.map.members


def test_who_is_only_named_counts_from_the_second_voice_on() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT)
    assert node.hear(said(CARL), ANNA) is Heard.PENDING
    assert node.hear(said(CARL), ANNA) is Heard.KNOWN
    assert CARL not in node.map.members
    assert node.map.pending(0.0, 0.0) == [CARL]
    assert node.map.tell([CARL], 0.0) == []
    assert node.hear(said(CARL), BERT) is Heard.NEWS
    assert CARL in node.map.members
    assert node.map.unmet() == [CARL]
    assert node.map.meet(CARL) is False
    assert node.map.unmet() == []


def test_meeting_makes_a_named_peer_count() -> None:
    node = Node(OWN)
    node.meet(ANNA)
    node.hear(said(CARL), ANNA)
    assert node.map.meet(CARL) is True
    assert node.map.meet(CARL) is False
    assert CARL in node.map.members
    assert node.map.meet(DORA) is False


def test_voices_of_those_who_do_not_count_count_for_nothing() -> None:
    node = Node(OWN)
    node.meet(ANNA)
    fakes = [peer(100 + i) for i in range(20)]
    for fake in fakes:
        node.hear(said(fake), ANNA)
    for fake in fakes:
        for teller in fakes:
            if teller != fake:
                node.hear(said(fake), teller)
    assert node.map.members == {ANNA}


def test_all_of_one_public_network_have_one_voice() -> None:
    node = Node(OWN)
    for i, who in enumerate((ANNA, BERT)):
        node.hear(said(who, at=f"/ip4/9.9.9.{i + 1}/tcp/1"), who)
    node.hear(said(DORA), ANNA)
    assert node.hear(said(DORA), BERT) is Heard.KNOWN
    assert DORA not in node.map.members
    node.hear(said(CARL, at="/ip4/9.9.8.1/tcp/1"), CARL)
    assert node.hear(said(DORA), CARL) is Heard.NEWS


def test_one_public_network_has_a_bounded_number_of_members_nobody_met() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT)
    crowd = [peer(200 + i) for i in range(MAX_UNMET_PER_GROUP + 10)]
    for i, one in enumerate(crowd):
        for teller in (ANNA, BERT):
            node.hear(said(one, at=f"/ip4/8.8.8.{i + 1}/tcp/1"), teller)
    assert len(node.map.members) == 2 + MAX_UNMET_PER_GROUP
    late = next(one for one in crowd if one not in node.map.members)
    assert node.map.meet(late)


def test_the_newest_record_wins_and_tells_whether_it_is_news() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT)
    assert node.hear(said(ANNA, 5), BERT) is Heard.REPEATED
    assert node.hear(said(ANNA, 4), BERT) is Heard.OLD
    assert node.hear(said(ANNA, 6, at="/ip4/10.1.1.1/tcp/1"), BERT) is Heard.NEWS
    record = node.map.record(ANNA)
    assert record is not None
    assert record.seq == 6


def test_a_goodbye_is_believed_until_something_newer_is_said() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT)
    assert node.hear(said(ANNA, 2, leaving=True), BERT) is Heard.NEWS
    assert node.map.members == {BERT}
    assert node.map.is_gone(ANNA)
    assert node.hear(said(ANNA, 1), BERT) is Heard.OLD
    assert node.map.tell([ANNA], 0.0), "others must hear of it"
    assert not node.map.meet(ANNA)
    assert node.hear(said(ANNA, 3), BERT) is Heard.NEWS
    assert node.map.members == {ANNA, BERT}


def test_the_dead_vanish_when_their_time_is_over_and_do_not_come_back() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT)
    node.hear(said(BERT, 2), BERT, 3000.0)
    assert node.map.sweep(LIFETIME - 1.0) == []
    assert node.map.sweep(LIFETIME) == [ANNA]
    assert node.map.members == {BERT}
    for _ in range(3):
        assert node.hear(said(ANNA), BERT, LIFETIME + 1.0) is Heard.OLD
    assert node.map.record(OWN) is not None
    assert node.hear(said(ANNA, 2), BERT, LIFETIME + 1.0) is Heard.PENDING


def test_a_teller_can_lengthen_no_record_beyond_its_own_time() -> None:
    node = Node(OWN)
    node.meet(ANNA)
    for now in range(0, LIFETIME, 600):
        node.hear(said(ANNA), ANNA, now, ttl=10**9)
    assert node.map.sweep(LIFETIME) == [ANNA]


def test_who_told_of_a_short_time_is_corrected_by_the_next() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT)
    node.hear(said(CARL), ANNA, ttl=1)
    node.hear(said(CARL), BERT, ttl=1800)
    assert node.map.sweep(1799.0) == []
    assert node.map.sweep(1800.0) == [CARL]
    assert node.hear(said(CARL), ANNA, 1800.0, ttl=1800) is Heard.PENDING


def test_who_does_not_answer_us_is_told_to_nobody_until_there_is_news_of_it() -> None:
    node = Node(OWN)
    node.meet(ANNA, BERT, CARL)
    assert node.map.lose(CARL)
    assert not node.map.lose(CARL)
    assert node.map.is_gone(CARL)
    assert CARL not in node.map.members
    for teller in (ANNA, BERT):
        assert node.hear(said(CARL), teller) is Heard.KNOWN
    assert node.map.tell([CARL], 0.0) == []
    assert node.hear(said(CARL, 2), ANNA) is Heard.PENDING
    assert node.hear(said(CARL, 2), BERT) is Heard.NEWS
    node.map.lose(CARL)
    assert node.map.meet(CARL)


def test_our_own_record_of_an_earlier_run_is_noticed() -> None:
    node = Node(OWN)
    node.meet(ANNA)
    assert node.hear(said(OWN, 9), ANNA) is Heard.OURS
    assert node.hear(said(OWN, 1), ANNA) is Heard.KNOWN
    assert not node.map.lose(OWN)


def test_a_full_map_takes_room_from_whoever_named_most_strangers() -> None:
    node = Node(OWN)
    node.map = MemberMap(OWN, capacity=24)
    node.map.say(said(OWN), 0.0)
    node.meet(ANNA, BERT)
    for i in range(40):
        node.hear(said(peer(300 + i)), ANNA)
    assert len(node.map.pending(0.0, 0.0)) == 21
    assert node.hear(said(peer(400)), ANNA) is Heard.FULL
    assert node.hear(said(CARL), BERT) is Heard.PENDING
    assert CARL in node.map.pending(0.0, 0.0)
    assert node.map.members == {ANNA, BERT}


def test_comparing_makes_maps_equal_with_what_differs_and_nothing_else() -> None:
    rng = random.Random(4)
    one, other = Node(OWN), Node(ANNA)
    crowd = [peer(500 + i) for i in range(300)]
    for who in crowd:
        for node in (one, other):
            node.hear(said(who), who)
    one.meet(ANNA)
    other.meet(OWN)
    assert compared(one, other) == (0, 0)
    changed = rng.sample(crowd, 9)
    for who in changed[:5]:
        one.hear(said(who, 2), who)
    for who in changed[5:]:
        other.hear(said(who, 2), who)
    other.hear(said(BERT), BERT)
    got, given = compared(one, other)
    assert (got, given) == (5, 5)
    for who in changed:
        for node in (one, other):
            record = node.map.record(who)
            assert record is not None
            assert record.seq == 2
    assert compared(one, other) == (0, 0) or BERT in one.map.pending(0.0, 0.0)


def test_a_comparison_after_the_record_of_the_other_lets_its_word_count() -> None:
    newcomer, first, second = Node(OWN), Node(ANNA), Node(BERT)
    crowd = [peer(900 + i) for i in range(50)]
    for node in (first, second):
        for who in crowd:
            node.hear(said(who), who)
    first.meet(BERT)
    second.meet(ANNA)
    compared(newcomer, first)
    assert newcomer.map.members == {ANNA}
    assert len(newcomer.map.pending(0.0, 0.0)) == 51
    compared(newcomer, second)
    bits = newcomer.map.bits
    listing = second.map.listing(bits, newcomer.map.summary(bits), 0.0)
    news = newcomer.map.compare(bits, listing, BERT, 0.0).news
    assert newcomer.map.members == {ANNA, BERT, *crowd}
    assert set(news) <= set(crowd)
    assert first.map.members == {OWN, BERT, *crowd}


def test_rows_that_lie_make_us_ask_for_little() -> None:
    node = Node(OWN)
    node.meet(ANNA)
    bits = node.map.bits
    listing = node.map.listing(bits, bytes(8 << bits), 0.0)
    assert {row.name for row in listing.rows} == {name_of(OWN), name_of(ANNA)}
    forged = Listing(
        listing.differing,
        (Row(b"a" * 8, 2**60, 9), Row(b"b" * 8, 1, 0), Row(b"c" * 8, 1, 9), Row(b"c" * 8, 1, 9)),
    )
    assert node.map.compare(bits, forged, ANNA, 0.0).wanted == [b"c" * 8]


def test_what_is_saved_counts_again_for_minutes_and_is_not_told() -> None:
    before = Node(OWN)
    before.meet(ANNA, BERT, CARL)
    before.hear(said(ANNA, 2, leaving=True), ANNA)
    saved = {record.peer: record for record, _ in before.map.lasting(0.0)}
    assert set(saved) == {OWN, BERT, CARL}
    again = Node(OWN)
    for record in saved.values():
        again.map.restore(record, 0.0)
    assert again.map.members == {BERT, CARL}
    assert again.map.tell([BERT], 0.0) == []
    assert again.hear(said(BERT), BERT, 10.0) is Heard.NEWS
    assert again.map.tell([BERT], 10.0)
    assert again.hear(said(CARL), BERT, 10.0, ttl=900) is Heard.NEWS
    assert again.map.sweep(200.0) == []
    lonely = Node(OWN)
    lonely.map.restore(saved[BERT], 0.0)
    assert lonely.map.sweep(200.0) == [BERT]
