from __future__ import annotations

from collections.abc import Callable

from meshnode.dht.keyspace import peer_position
from meshnode.dht.lookup import Lookup, Paths
from meshnode.dht.peer_id import PeerId

TARGET = 0
PEERS = sorted((PeerId.from_ed25519(i.to_bytes(32, "big")) for i in range(60)), key=peer_position)
"""Nearest to the target first."""


def started(k: int = 4, alpha: int = 2, max_alpha: int = 6, seeds: slice = slice(20, 30)) -> Lookup:
    lookup = Lookup(TARGET, k=k, alpha=alpha, max_alpha=max_alpha)
    lookup.seed(PEERS[seeds])
    return lookup


def drain(lookup: Lookup) -> list[PeerId]:
    asked = []
    while (peer := lookup.next_peer()) is not None:
        asked.append(peer)
    return asked


def test_the_nearest_are_asked_first_alpha_at_a_time() -> None:
    lookup = started()
    assert drain(lookup) == PEERS[20:22]
    lookup.answered(PEERS[20], PEERS[10:14])
    assert drain(lookup) == [PEERS[10]]


def test_a_stalled_lookup_asks_more_at_a_time() -> None:
    lookup = started(k=10)
    drain(lookup)
    lookup.answered(PEERS[20], [])
    assert len(drain(lookup)) == 5  # one still waiting, six allowed


def test_it_ends_when_the_k_nearest_have_answered() -> None:
    lookup = started()
    while not lookup.settled:
        for peer in drain(lookup):
            lookup.answered(peer, PEERS[:6])
    assert lookup.closest() == PEERS[:4]
    assert lookup.hops == 1
    assert lookup.asked < 10


def test_a_failed_peer_gives_its_place_to_the_next() -> None:
    lookup = started(seeds=slice(0, 8))
    while not lookup.settled:
        for peer in drain(lookup):
            if peer in PEERS[:2]:
                lookup.failed(peer)
            else:
                lookup.answered(peer, [])
    assert lookup.closest() == PEERS[2:6]


def test_a_late_peer_is_passed_over_and_counts_again_when_it_answers() -> None:
    lookup = started(seeds=slice(0, 8))
    first, second = drain(lookup)
    lookup.late(first)
    lookup.late(second)
    for peer in drain(lookup):
        lookup.answered(peer, [])
    assert lookup.settled
    assert lookup.late_matters
    assert lookup.closest() == PEERS[2:6]
    lookup.answered(first, [])
    assert lookup.closest() == [PEERS[0], *PEERS[2:5]]


def test_of_a_long_list_only_the_k_nearest_count() -> None:
    lookup = started(k=3, seeds=slice(50, 51))
    (peer,) = drain(lookup)
    lookup.answered(peer, PEERS)
    asked = []
    while not lookup.settled:
        for peer in drain(lookup):
            asked.append(peer)
            lookup.answered(peer, [])
    assert asked == PEERS[:3]


def test_the_number_of_questions_is_bounded() -> None:
    lookup = Lookup(TARGET, k=20, alpha=3, max_alpha=10)
    number = 0

    def strangers() -> list[PeerId]:
        nonlocal number
        number += 20
        return [PeerId.from_ed25519((10**6 + number + i).to_bytes(32, "big")) for i in range(20)]

    lookup.seed(strangers())
    while (peer := lookup.next_peer()) is not None:
        lookup.answered(peer, strangers())
    assert lookup.asked <= 160


def paths(count: int, seeds: list[PeerId], k: int = 4) -> Paths:
    return Paths(TARGET, seeds, count=count, k=k, alpha=1, max_alpha=3)


def walk(found: Paths, tell: Callable[[PeerId], list[PeerId]]) -> dict[PeerId, int]:
    """Answer every question with `tell`; returns who was asked, and by which path."""
    asked = {}
    while (peer := found.next_peer()) is not None:
        assert peer not in asked, "no peer is asked twice"
        asked[peer] = found.path(peer)
        found.answered(peer, tell(peer))
    return asked


def test_disjoint_paths_share_no_peer_and_find_what_one_would() -> None:
    one, three = paths(1, PEERS[20:29]), paths(3, PEERS[20:29])

    def honest(peer: PeerId) -> list[PeerId]:
        place = PEERS.index(peer)
        return PEERS[max(0, place - 8) : place]

    walk(one, honest)
    asked = walk(three, honest)
    assert set(asked.values()) == {0, 1, 2}
    assert three.settled
    assert three.closest() == one.closest() == PEERS[:4]
    assert three.asked == len(asked)
    assert three.hops >= 2


def test_peers_that_mislead_one_path_do_not_mislead_the_others() -> None:
    liars = [PeerId.from_ed25519((10**9 + i).to_bytes(32, "big")) for i in range(60)]

    def tell(peer: PeerId) -> list[PeerId]:
        if peer in liars or peer == PEERS[20]:
            return liars
        place = PEERS.index(peer)
        return PEERS[max(0, place - 8) : place]

    # The one seed's accomplices know nobody else; the other seed leads to the true nearest.
    alone, two = paths(1, [PEERS[20]]), paths(2, [PEERS[20], PEERS[21]])
    walk(alone, tell)
    walk(two, tell)
    assert not set(alone.closest()) & set(PEERS)
    assert two.closest() == sorted([*liars, *PEERS], key=peer_position)[:4]
    assert set(two.closest()) & set(PEERS[:4])


def test_a_late_peer_on_one_path_does_not_hold_up_another() -> None:
    found = paths(2, PEERS[10:12])
    first, second = found.next_peer(), found.next_peer()
    assert first is not None
    assert second is not None
    assert found.path(first) != found.path(second)
    found.late(first)
    found.answered(second, PEERS[:4])
    asked = walk(found, lambda peer: [])
    assert set(asked) == set(PEERS[:4])
    assert found.settled


def test_there_are_no_more_paths_than_seeds() -> None:
    assert len(paths(3, PEERS[:2])) == 2
    assert len(paths(3, [])) == 1
    assert paths(3, []).next_peer() is None
