from __future__ import annotations

import pytest
from meshnode.dht.budget import KeyBudget
from meshnode.dht.peer_id import PeerId

A, B = (PeerId.from_ed25519(bytes([i]) * 32) for i in (1, 2))


def test_a_burst_passes_at_once_and_what_follows_at_the_rate() -> None:
    budget = KeyBudget(rate=10, burst=100)
    assert budget.take(A, 60, now=0) == 0
    assert budget.take(A, 40, now=0) == 0
    wait = budget.take(A, 20, now=0)
    assert wait == pytest.approx(2)
    assert budget.take(A, 20, now=1) == pytest.approx(1)
    assert budget.take(A, 20, now=2) == 0
    assert budget.take(A, 1, now=2) > 0


def test_one_peers_haste_costs_no_other_peer_anything() -> None:
    budget = KeyBudget(rate=10, burst=100)
    budget.take(A, 100, now=0)
    assert budget.take(A, 1, now=0) > 0
    assert budget.take(B, 100, now=0) == 0


def test_a_message_of_more_keys_than_a_burst_is_possible_after_a_rest() -> None:
    budget = KeyBudget(rate=10, burst=100)
    assert budget.take(A, 1000, now=0) == 0
    assert budget.take(A, 1000, now=0) == pytest.approx(10)
    assert budget.take(A, 1000, now=10) == 0


def test_rested_peers_are_forgotten_and_hasty_ones_are_not() -> None:
    budget = KeyBudget(rate=10, burst=100)
    budget.take(A, 100, now=0)
    for i in range(5000):
        budget.take(PeerId.from_ed25519(i.to_bytes(32, "big")), 1, now=i / 1000)
    assert len(budget._buckets) < 1500
    assert budget.take(A, 100, now=5) == pytest.approx(5)
