"""Which of several connections both sides use, and which one goes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.node.transport.libp2p_choice import preferred, superfluous

SMALL, LARGE = sorted(PeerId.from_ed25519(bytes([number]) * 32) for number in (1, 2))
WINDOW = 5.0


@dataclass(frozen=True)
class Fake:
    name: str
    peer: PeerId
    inbound: bool
    opened_at: float = 0.0
    usable: bool = True
    streams: int = 0


def seen_from_both(made: list[tuple[str, PeerId, float]]) -> tuple[list[Fake], list[Fake]]:
    """Connections given by name, dialler and time, as both peers see them."""
    return (
        [Fake(name, LARGE, dialler == LARGE, at) for name, dialler, at in made],
        [Fake(name, SMALL, dialler == SMALL, at) for name, dialler, at in made],
    )


def chosen(connections: list[Fake], own: PeerId) -> str | None:
    best = preferred(connections, own, WINDOW)
    return best.name if best else None


def test_of_two_dials_at_once_both_sides_choose_that_of_the_smaller_id() -> None:
    small, large = seen_from_both([("by small", SMALL, 1.0), ("by large", LARGE, 1.2)])
    assert chosen(small, SMALL) == chosen(large, LARGE) == "by small"
    assert chosen(small[::-1], SMALL) == chosen(large[::-1], LARGE) == "by small"


def test_a_peer_that_dials_again_later_has_lost_the_old_connection() -> None:
    small, large = seen_from_both([("old", SMALL, 1.0), ("new", LARGE, 1.0 + WINDOW + 0.1)])
    assert chosen(small, SMALL) == chosen(large, LARGE) == "new"


def test_a_connection_that_takes_no_streams_is_never_chosen() -> None:
    left = Fake("left", LARGE, inbound=False, usable=False)
    assert chosen([left], SMALL) is None
    assert chosen([left, Fake("other", LARGE, inbound=True)], SMALL) == "other"
    assert chosen([], SMALL) is None


@given(st.lists(st.sampled_from([SMALL, LARGE]), min_size=1, max_size=5))
def test_whoever_dialled_how_often_both_sides_choose_the_same(diallers: list[PeerId]) -> None:
    made = [(str(index), dialler, index * 0.1) for index, dialler in enumerate(diallers)]
    small, large = seen_from_both(made)
    assert chosen(small, SMALL) == chosen(large, LARGE)


def test_the_ones_with_fewest_streams_go_but_never_the_chosen_and_the_newest() -> None:
    known = [
        Fake("chosen", LARGE, inbound=False),
        Fake("busy", LARGE, inbound=True, streams=9),
        Fake("idle", LARGE, inbound=True, streams=1),
        Fake("newest", LARGE, inbound=True),
    ]
    assert [c.name for c in superfluous(known, known[0], 3)] == ["idle"]
    assert [c.name for c in superfluous(known, known[0], 1)] == ["idle", "busy"]
    assert superfluous(known, known[0], 4) == []


def test_a_connection_the_peer_is_leaving_takes_no_good_ones_place() -> None:
    leaving = [Fake(f"leaving {n}", LARGE, inbound=True, usable=False, streams=1) for n in range(4)]
    good = [Fake(f"good {n}", LARGE, inbound=True) for n in range(3)]
    assert superfluous([*leaving[:3], *good], good[0], 3) == []
    assert superfluous([*leaving, *good], good[0], 3) == leaving[:1]
