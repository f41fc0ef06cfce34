"""Which connections go because nobody uses them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.node.transport.idle_choice import Marks, Standing, dispensable, giving_way

MARKS = Marks(low=4, high=8, idle_after=300.0, grace=20.0)


def idle(*seconds: float | None) -> list[Standing[str]]:
    return [Standing(f"{number}", idle=since) for number, since in enumerate(seconds)]


marks = st.builds(
    lambda low, more, grace, longer: Marks(low, low + more, grace + longer, grace),
    st.integers(0, 6),
    st.integers(0, 6),
    st.floats(0.1, 50),
    st.floats(0, 500),
)
standing = st.builds(
    Standing,
    connection=st.builds(object),
    idle=st.none() | st.floats(0, 1000),
    inbound=st.booleans(),
    spared=st.booleans(),
    stranger=st.booleans(),
    way_back=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(standing, max_size=20), marks)
def test_only_idle_connections_go_and_never_more_than_are_too_many(
    standings: list[Standing[object]], given_marks: Marks
) -> None:
    closed = dispensable(standings, given_marks)
    by_connection = {id(s.connection): s for s in standings}
    assert len({id(c) for c in closed}) == len(closed)
    left = len(standings) - len(closed)
    if closed:
        assert left >= given_marks.low
    for gone in (by_connection[id(c)] for c in closed):
        assert gone.idle is not None
        assert not gone.spared
        assert gone.idle >= given_marks.grace
        if left < given_marks.high:
            assert gone.idle >= given_marks.idle_after


@settings(max_examples=300, deadline=None)
@given(st.lists(standing, max_size=20), marks)
def test_who_stays_is_needed_or_within_the_mark_that_applies_to_it(
    standings: list[Standing[object]], given_marks: Marks
) -> None:
    closed = {id(c) for c in dispensable(standings, given_marks)}
    stay = [s for s in standings if id(s.connection) not in closed]
    for kept in stay:
        if kept.idle is None or kept.spared or kept.idle < given_marks.grace:
            continue
        assert len(stay) <= given_marks.high
        assert kept.idle < given_marks.idle_after or len(stay) <= given_marks.low


@settings(max_examples=300, deadline=None)
@given(st.lists(standing, max_size=20), marks)
def test_closing_settles_it(standings: list[Standing[object]], given_marks: Marks) -> None:
    closed = {id(c) for c in dispensable(standings, given_marks)}
    stay = [s for s in standings if id(s.connection) not in closed]
    assert dispensable(stay, given_marks) == []


@settings(max_examples=300, deadline=None)
@given(st.lists(standing, max_size=20), st.floats(0, 1000))
def test_room_is_made_by_the_least_valuable_of_the_idle_inbound_ones(
    standings: list[Standing[object]], grace: float
) -> None:
    eligible = [
        (not s.stranger, not s.way_back, -s.idle)
        for s in standings
        if s.inbound and not s.spared and s.idle is not None and s.idle >= grace
    ]
    chosen = giving_way(standings, grace)
    assert (chosen is None) == (not eligible)
    for s in standings:
        if s.connection is chosen and s.idle is not None:
            assert (not s.stranger, not s.way_back, -s.idle) == min(eligible)


def test_up_to_the_low_mark_nobody_goes_however_idle() -> None:
    assert dispensable(idle(1e6, 1e6, 1e6, 1e6), MARKS) == []


def test_beyond_the_low_mark_the_longest_idle_go_first() -> None:
    assert dispensable(idle(400, 1000, 900, 10, 350, 299), MARKS) == ["1", "2"]


def test_between_the_marks_who_was_used_lately_stays() -> None:
    assert dispensable(idle(*[299] * 8), MARKS) == []


def test_above_the_high_mark_the_grace_period_is_enough() -> None:
    assert dispensable(idle(*[100] * 8, 200, 19), MARKS) == ["8", "0"]


def test_strangers_go_before_members_and_those_nobody_can_dial_again_last() -> None:
    standings = [
        Standing("unreachable", idle=900, way_back=False),
        Standing("member", idle=500),
        Standing("stranger", idle=400, stranger=True),
        *idle(None, None, None),
    ]
    assert dispensable(standings, MARKS) == ["stranger", "member"]
    assert giving_way(standings, 20.0) == "stranger"
    assert giving_way(standings[:2], 20.0) == "member"
    assert giving_way(standings[:1], 20.0) == "unreachable"
