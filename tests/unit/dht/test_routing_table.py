from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.keyspace import common_bits, peer_position, position
from meshnode.dht.peer_id import PeerId
from meshnode.dht.routing_table import MAX_PER_BUCKET, MAX_PER_TABLE, RoutingTable

OWN = PeerId.from_ed25519(b"\0" * 32)
PEERS = [PeerId.from_ed25519(i.to_bytes(32, "big")) for i in range(1, 41)]

events = st.lists(
    st.tuples(st.sampled_from(["seen", "seen", "seen", "demote", "evict"]), st.sampled_from(PEERS)),
    max_size=150,
)


class NaiveTable:
    """The rules of the paper, with lists."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.members: dict[int, list[PeerId]] = {}
        self.waiting: dict[int, list[PeerId]] = {}

    def apply(self, event: str, peer: PeerId) -> None:
        bits = common_bits(peer_position(OWN), peer_position(peer))
        members, waiting = self.members.setdefault(bits, []), self.waiting.setdefault(bits, [])
        member = peer in members
        if event == "seen":
            if member or len(members) < self.k:
                members[:] = [p for p in members if p != peer] + [peer]
                waiting[:] = [p for p in waiting if p != peer]
            else:
                waiting[:] = ([p for p in waiting if p != peer] + [peer])[-self.k :]
        else:
            waiting[:] = [p for p in waiting if p != peer]
            members[:] = [p for p in members if p != peer]
            if event == "demote" and member:
                members.insert(0, peer)
            elif member and waiting:
                members.insert(0, waiting.pop())


@settings(deadline=None, max_examples=150)
@given(events, st.integers(min_value=1, max_value=4))
def test_the_table_follows_the_naive_model_event_by_event(
    happened: list[tuple[str, PeerId]], k: int
) -> None:
    table, naive = RoutingTable(OWN, k), NaiveTable(k)
    for now, (event, peer) in enumerate(happened):
        if event == "seen":
            table.seen(peer, now)
        elif event == "demote":
            table.demote(peer)
        else:
            table.evict(peer)
        naive.apply(event, peer)
        expected = [p for members in naive.members.values() for p in members]
        assert set(table) == set(expected)
        assert len(table) == len(expected)
        assert set(table.index().under(0, 0)) == {OWN, *expected}
        oldest = {members[0] for members in naive.members.values() if members}
        assert set(table.questionable(10**9, 0)) == oldest
    for target in (0, position(b"x")):
        nearest = sorted(table, key=lambda p: peer_position(p) ^ target)
        assert table.closest(target, 3) == nearest[:3]


def test_we_never_enter_our_own_table() -> None:
    table = RoutingTable(OWN, 2)
    assert not table.seen(OWN, 0.0)
    assert OWN not in table


def test_fewer_than_k_peers_are_the_whole_mesh_and_more_are_not() -> None:
    table = RoutingTable(OWN, 5)
    for peer in PEERS[:4]:
        table.seen(peer, 0.0)
    assert table.complete_bits() == 0
    for peer in PEERS:
        table.seen(peer, 0.0)
    bits = table.complete_bits()
    assert bits > 0
    inside = [p for p in PEERS if common_bits(peer_position(p), peer_position(OWN)) >= bits]
    assert set(inside) <= set(table)


def test_full_buckets_are_due_for_refresh_and_their_keys_fall_into_them() -> None:
    table = RoutingTable(OWN, 3)
    for peer in PEERS:
        table.seen(peer, 0.0)
    due = table.stale_buckets(100.0, 50.0)
    assert due
    for bucket in due:
        key = table.key_in(bucket, random.Random(1))
        assert common_bits(position(key), peer_position(OWN)) == bucket
        table.refreshed(bucket, 100.0)
    assert table.stale_buckets(120.0, 50.0) == []
    assert table.stale_buckets(150.0, 50.0) == due


def in_bucket(bucket: int, count: int, salt: int) -> list[PeerId]:
    """Peers that fall into one bucket of OWN's table."""
    found = []
    for i in range(10**6):
        peer = PeerId.from_ed25519((salt * 10**6 + i).to_bytes(32, "big"))
        if common_bits(peer_position(OWN), peer_position(peer)) == bucket:
            found.append(peer)
        if len(found) == count:
            break
    return found


def test_a_network_with_many_peers_has_to_make_room_for_others() -> None:
    table = RoutingTable(OWN, 8)
    crowd, honest = in_bucket(0, 30, 1), in_bucket(0, 10, 2)
    for peer in crowd:
        table.seen(peer, 0.0, "9.9.9.0/24")
    assert len(table) == 8, "free places are free for all"
    assert set(table.index().under(0, 0)) == {OWN, *table}
    for i, peer in enumerate(honest):
        table.seen(peer, 1.0, f"9.9.{i}.0/24")
    members = set(table)
    assert set(table.index().under(0, 0)) == {OWN, *members}
    assert len(members & set(crowd)) == MAX_PER_BUCKET
    assert len(members & set(honest)) == 8 - MAX_PER_BUCKET
    for peer in crowd:
        table.seen(peer, 2.0, "9.9.9.0/24")
    assert set(table) == members, "what is beyond its share displaces nobody"


def test_a_network_has_its_share_of_the_whole_table_too() -> None:
    table = RoutingTable(OWN, 2)
    crowd = [peer for bucket in range(8) for peer in in_bucket(bucket, 2, 3)]
    for peer in crowd:
        table.seen(peer, 0.0, "9.9.9.0/24")
    assert len(table) == 16
    for bucket in range(8):
        (peer,) = in_bucket(bucket, 1, 4)
        table.seen(peer, 1.0, None)
    assert len(set(table) & set(crowd)) == MAX_PER_TABLE


def test_peers_of_no_network_are_not_limited_and_the_waiting_rise_by_share() -> None:
    table = RoutingTable(OWN, 4)
    local = in_bucket(0, 4, 5)
    for peer in local:
        assert table.seen(peer, 0.0)
    crowd, other = in_bucket(0, 3, 6), in_bucket(0, 1, 7)[0]
    assert not table.seen(other, 1.0, "8.8.8.0/24")
    for peer in crowd:
        assert not table.seen(peer, 2.0, "9.9.9.0/24")
    assert table.evict(local[0]) == crowd[2]
    assert table.evict(local[1]) == crowd[1]
    assert table.evict(local[2]) == other, "the third of one network waits longer"
    assert table.evict(local[3]) == crowd[0], "unless nobody else does"


def test_the_size_of_the_mesh_is_estimated_from_our_neighbourhood() -> None:
    rng = random.Random(8)
    for size in (10, 100, 400):
        estimates = []
        for _ in range(20):
            table = RoutingTable(PeerId.from_ed25519(rng.randbytes(32)), 20)
            for _ in range(size - 1):
                table.seen(PeerId.from_ed25519(rng.randbytes(32)), 0.0)
            estimates.append(table.estimated_size())
        assert 0.8 * size <= sum(estimates) / 20 <= 1.25 * size
        assert all(0.4 * size <= estimate <= 2.5 * size for estimate in estimates)


def test_the_nearest_members_are_those_that_sorting_all_of_them_gives() -> None:
    rng = random.Random(7)
    for size in (0, 3, 19, 20, 60, 300):
        table = RoutingTable(OWN, k=20)
        for number in range(size):
            table.seen(PeerId.from_ed25519(rng.randbytes(32)), float(number))
        everywhere = [rng.getrandbits(256) for _ in range(20)]
        for target in [peer_position(OWN), *map(peer_position, list(table)[:5]), *everywhere]:
            ranked = sorted(table, key=lambda peer: peer_position(peer) ^ target)
            for count in (1, 20, 40):
                assert table.closest(target, count) == ranked[:count]
        near = table.closest(peer_position(OWN), 20)
        assert table.complete_bits() == (table.bucket_of(near[-1]) + 1 if len(near) == 20 else 0)
