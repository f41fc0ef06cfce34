"""What claims about a neighbourhood are worth when some of their makers lie."""

from __future__ import annotations

import random

from meshnode.dht.claims import CLAIM_LIFETIME, Claim, Claims
from meshnode.dht.keyspace import PeerIndex, common_bits, peer_position
from meshnode.dht.peer_id import PeerId

BITS = 4


def peers_near(at: PeerId, count: int, seed: int) -> list[PeerId]:
    """Peers in the stretch of `BITS` bits around `at`."""
    rng, out = random.Random(seed), list[PeerId]()
    while len(out) < count:
        peer = PeerId.from_ed25519(rng.randbytes(32))
        if common_bits(peer_position(peer), peer_position(at)) >= BITS:
            out.append(peer)
    return out


OWN = PeerId.from_ed25519(b"own".ljust(32))
FIRST = PeerId.from_ed25519(b"somewhere else".ljust(32))
HONEST = [FIRST, *peers_near(FIRST, 9, 1)]
RING = peers_near(FIRST, 12, 2)


def claim(peer: PeerId, known: list[PeerId], at: float = 0.0, *, by_chance: bool = False) -> Claim:
    return Claim(peer, peer, BITS, frozenset(known), at, by_chance)


def test_a_ring_that_names_only_itself_is_convicted_by_a_few_honest_peers_we_met() -> None:
    met = set(HONEST[:3])
    claims = Claims(OWN, met.__contains__)
    for colluder in RING[:3]:
        claims.add(claim(colluder, RING))
    claims.add(claim(HONEST[0], HONEST + RING))
    index = PeerIndex([*HONEST, *RING, OWN])
    assert claims.over(0.0).total() == 4
    assert claims.contradict(index, 0.0) == 3
    assert claims.over(0.0).total() == 1
    # Colluders are there, so whoever names them as well says the truth.
    assert claims.vouched(0.0) == {*HONEST, *RING}
    assert claims.heard(0.0) == {*RING[:3], HONEST[0]}


def test_a_claim_may_lack_a_newcomer() -> None:
    claims = Claims(OWN, lambda peer: True)
    claims.add(claim(HONEST[0], HONEST[:-1]))
    assert claims.contradict(PeerIndex(HONEST), 0.0) == 0


def test_who_is_left_out_by_somebody_is_to_be_asked() -> None:
    claims = Claims(OWN, {HONEST[1]}.__contains__)
    claims.add(claim(RING[0], RING))
    claims.add(claim(HONEST[0], HONEST + RING))
    disputed = claims.disputed(PeerIndex([*HONEST, *RING, OWN]), 0.0)
    assert set(disputed) == set(HONEST) - {HONEST[1]}


def test_inventions_void_the_claims_that_name_them_but_not_those_that_leave_them_out() -> None:
    claims = Claims(OWN, HONEST.__contains__)
    claims.add(claim(HONEST[0], HONEST))
    claims.add(claim(RING[0], [*HONEST, *RING]))
    assert claims.silence(RING, 0.0) == 1
    assert claims.named(0.0) == set(HONEST)
    assert claims.contradict(PeerIndex([*HONEST, *RING]), 0.0) == 0
    claims.add(claim(RING[0], HONEST, 1.0))
    assert RING[0] not in claims, "whose claim was void is not believed so soon again"


def test_of_whom_a_void_claim_names_those_that_dealt_with_us_count() -> None:
    met = set(HONEST[:4])
    claims = Claims(OWN, met.__contains__)
    claims.add(claim(FIRST, HONEST))
    assert claims.silence(HONEST[5:], 0.0) == 1, "half a mesh may be gone at once"
    assert claims.named(0.0) == met
    met.add(HONEST[4])
    assert HONEST[4] in claims.named(1.0), "also who deals with us later"
    assert claims.named(CLAIM_LIFETIME + 1.0) == set()


def test_who_did_not_answer_is_left_out_for_a_while_and_not_for_ever() -> None:
    claims = Claims(OWN, lambda peer: False)
    claims.silence(RING[:1], 0.0)
    later = CLAIM_LIFETIME - 1.0
    claims.add(claim(HONEST[0], RING[:2], later))
    assert claims.named(later) == {RING[1]}
    assert claims.named(CLAIM_LIFETIME + 1.0) == {RING[0], RING[1]}


def test_claims_end() -> None:
    claims = Claims(OWN, HONEST.__contains__)
    claims.add(claim(HONEST[0], HONEST))
    assert claims.named(CLAIM_LIFETIME) == set(HONEST)
    assert claims.named(CLAIM_LIFETIME + 1.0) == set()
    assert not len(claims)


def test_the_size_of_the_mesh_is_what_most_of_those_chosen_by_chance_see() -> None:
    claims = Claims(OWN, lambda peer: True)
    for peer in HONEST[:3]:
        claims.add(claim(peer, HONEST, by_chance=True))
    assert claims.size(5000.0, 0.0) == 5000.0, "three are too few to say"
    for peer in RING[:2]:
        claims.add(claim(peer, HONEST, by_chance=True))
    for peer in RING[2:]:
        claims.add(claim(peer, [peer]))
    assert claims.size(5000.0, 0.0) == len(HONEST) * 2.0**BITS
