from __future__ import annotations

from meshnode.dht.health import PeerHealth
from meshnode.dht.peer_id import PeerId

A, B = (PeerId.from_ed25519(bytes([i]) * 32) for i in (1, 2))


def test_the_deadline_follows_the_round_trip_within_a_quarter_and_two_seconds() -> None:
    health = PeerHealth()
    assert health.deadline(A) == 2.0
    for now in range(20):
        health.succeeded(A, now, 0.002)
    assert health.deadline(A) == 0.25
    assert health.late_after(A) == 0.05
    for now in range(20, 60):
        health.succeeded(A, now, 0.4)
    assert 0.4 < health.deadline(A) < 1.0
    for now in range(60, 120):
        health.succeeded(A, now, 30.0)
    assert health.deadline(A) == 2.0
    assert health.late_after(A) == 0.5


def test_answers_without_a_measure_leave_the_round_trip_alone() -> None:
    health = PeerHealth()
    health.succeeded(A, 0.0)
    assert health.rtt(A) is None
    health.succeeded(A, 0.0, 0.1)
    health.succeeded(A, 1.0)
    assert health.rtt(A) == 0.1


def test_a_failed_peer_is_avoided_longer_with_each_failure_until_it_answers() -> None:
    health = PeerHealth()
    health.failed(A, 0.0)
    assert health.is_down(A, 4.9)
    assert not health.is_down(A, 5.0)
    health.failed(A, 5.0)
    assert health.is_down(A, 14.9)
    assert not health.is_down(A, 15.0)
    for now in range(20):
        health.failed(A, now)
    assert not health.is_down(A, 19 + 300)
    health.succeeded(A, 20.0)
    assert not health.is_down(A, 20.0)


def test_three_failures_evict_only_when_somebody_else_answered_meanwhile() -> None:
    health = PeerHealth()
    health.succeeded(B, 0.0)
    for now in (1.0, 2.0, 3.0):
        assert not health.should_evict(A)
        health.failed(A, now)
    assert not health.should_evict(A), "our own network may be the one that failed"
    health.succeeded(B, 4.0)
    assert health.should_evict(A)
    health.succeeded(A, 5.0)
    assert not health.should_evict(A)
