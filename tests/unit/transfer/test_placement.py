from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.node.transfer.placement import Member, rank


def _member(number: int, zone: str = "z", space: int | None = None, rate: float = 0.0) -> Member:
    key = random.Random(number).randbytes(32)
    return Member(PeerId.from_ed25519(key), zone, space, rate)


def _digests(count: int) -> list[bytes]:
    rng = random.Random(42)
    return [rng.randbytes(32) for _ in range(count)]


members_lists = st.lists(
    st.builds(
        _member,
        st.integers(1, 10_000),
        st.sampled_from(["a", "b", "c"]),
        st.none() | st.integers(0, 1 << 45),
        st.floats(0, 1e9),
    ),
    max_size=12,
    unique_by=lambda member: member.peer,
)


@given(members_lists, st.binary(min_size=32, max_size=32), st.randoms())
@settings(deadline=None, max_examples=60)
def test_the_ranking_depends_on_the_members_not_on_their_order(
    members: list[Member], digest: bytes, rng: random.Random
) -> None:
    shuffled = list(members)
    rng.shuffle(shuffled)
    assert rank(digest, members, ["a"]) == rank(digest, shuffled, ["a"])
    assert {m.peer for m in rank(digest, members, [])} == {m.peer for m in members}


@given(members_lists, st.binary(min_size=32, max_size=32))
@settings(deadline=None, max_examples=60)
def test_the_first_places_go_to_as_many_zones_as_there_are(
    members: list[Member], digest: bytes
) -> None:
    zones = {member.zone for member in members}
    first = rank(digest, members, [])[: len(zones)]
    assert {member.zone for member in first} == zones


def test_a_zone_that_has_a_copy_already_comes_last() -> None:
    members = [_member(n, "here") for n in range(5)] + [_member(9, "there")]
    for digest in _digests(50):
        assert rank(digest, members, ["here"])[0].zone == "there"


@pytest.mark.parametrize("count", [5, 10, 20])
def test_a_new_member_takes_only_its_share_and_moves_nothing_else(count: int) -> None:
    members = [_member(n) for n in range(count)]
    newcomer = _member(1000)
    digests, copies = _digests(2000), 2
    moved = 0
    for digest in digests:
        before = [m.peer for m in rank(digest, members, [])[:copies]]
        after = [m.peer for m in rank(digest, [*members, newcomer], [])[:copies]]
        kept = [peer for peer in after if peer != newcomer.peer]
        assert kept == before[: len(kept)]
        moved += copies - len(kept)
    share = moved / (copies * len(digests))
    assert 0.6 / (count + 1) < share < 1.5 / (count + 1)


def test_members_of_equal_weight_get_equal_shares() -> None:
    members = [_member(n) for n in range(4)]
    firsts = [rank(digest, members, [])[0].peer for digest in _digests(4000)]
    for member in members:
        assert 850 < firsts.count(member.peer) < 1150


def test_more_free_space_draws_more_chunks_but_not_all() -> None:
    large, small = _member(1, space=1 << 42), _member(2, space=1 << 34)
    firsts = [rank(digest, [large, small], [])[0].peer for digest in _digests(1000)]
    assert 700 < firsts.count(large.peer) < 1000


def test_no_claim_of_space_draws_nearly_everything_to_one_member() -> None:
    honest, boasting = _member(1, space=100 << 30), _member(2, space=2**63 - 1)
    firsts = [rank(digest, [honest, boasting], [])[0].peer for digest in _digests(1000)]
    assert 30 < firsts.count(honest.peer) < 300


def test_a_faster_member_draws_somewhat_more() -> None:
    fast, slow = _member(1, rate=1e9), _member(2, rate=1e5)
    firsts = [rank(digest, [fast, slow], [])[0].peer for digest in _digests(1000)]
    assert 550 < firsts.count(fast.peer) < 950


def test_a_member_without_room_for_the_chunk_is_left_out() -> None:
    full = _member(1, space=999)
    assert rank(bytes(32), [full], [], size=1000) == []
    assert rank(bytes(32), [replace(full, available_bytes=1000)], [], size=1000) != []
