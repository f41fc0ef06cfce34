from __future__ import annotations

from meshnode.dht.census import Census, Mode
from meshnode.dht.peer_id import PeerId

ANNA, BERT, CARL, DORA = (PeerId.from_ed25519(bytes([i]) * 32) for i in range(4))


def complete(limit: int = 50) -> Census:
    census = Census(limit, 30.0)
    census.agreed(ANNA, quiet=True, now=0.0)
    census.agreed(BERT, quiet=True, now=0.0)
    assert census.mode is Mode.MAP
    return census


def test_two_members_in_a_row_with_nothing_new_make_the_map_complete() -> None:
    census = Census(50, 30.0)
    census.agreed(ANNA, quiet=True, now=0.0)
    census.agreed(ANNA, quiet=True, now=0.0)
    assert census.mode is Mode.BUILDING
    census.agreed(BERT, quiet=False, now=0.0)
    assert census.mode is Mode.BUILDING, "BERT knew more than ANNA"
    census.agreed(CARL, quiet=True, now=0.0)
    assert census.mode is Mode.MAP


def test_the_only_other_member_suffices_and_silence_does_not() -> None:
    census = Census(50, 30.0)
    census.asked.add(ANNA)
    census.nobody_left()
    assert census.mode is Mode.BUILDING
    assert not census.asked, "all are asked once more"
    census.agreed(ANNA, quiet=False, now=0.0)
    census.nobody_left()
    assert census.mode is Mode.MAP


def test_a_map_nobody_confirmed_for_twenty_rounds_is_not_complete() -> None:
    census = complete()
    census.looked_around(600.0)
    assert census.mode is Mode.MAP
    census.agreed(ANNA, quiet=True, now=600.0)
    census.looked_around(1200.0)
    assert census.mode is Mode.MAP
    census.looked_around(1201.0)
    assert census.mode is Mode.BUILDING


def test_one_member_too_many_makes_the_mesh_large_once() -> None:
    census = complete(limit=50)
    assert not census.counted(50, 0.0)
    assert census.counted(51, 0.0)
    assert census.mode is Mode.LARGE
    assert not census.counted(52, 0.0)


def test_a_large_mesh_is_small_again_well_below_the_limit_and_not_at_once() -> None:
    census = complete(limit=50)
    census.counted(51, 0.0)
    assert not census.estimated(10, 299.0, asked=False)
    assert not census.estimated(41, 300.0, asked=False)
    assert census.mode is Mode.LARGE
    assert census.estimated(39, 300.0, asked=False)
    assert census.mode is Mode.BUILDING
    assert not census.estimated(39, 300.0, asked=False)


def test_below_the_limit_it_is_enough_that_somebody_else_finds_the_mesh_small() -> None:
    census = complete(limit=50)
    census.counted(51, 0.0)
    assert not census.estimated(50, 300.0, asked=True)
    assert census.estimated(49, 300.0, asked=True)


def test_a_newcomer_believes_the_first_and_a_settled_node_the_third_that_calls_it_large() -> None:
    newcomer = Census(50, 30.0)
    assert newcomer.called_large(ANNA, 0.0)
    assert newcomer.mode is Mode.LARGE
    settled = complete()
    assert not settled.called_large(ANNA, 0.0)
    assert not settled.called_large(ANNA, 0.0)
    assert not settled.called_large(BERT, 0.0)
    settled.agreed(CARL, quiet=True, now=0.0)
    for peer in (ANNA, BERT):
        assert not settled.called_large(peer, 0.0)
    assert settled.called_large(DORA, 0.0)
