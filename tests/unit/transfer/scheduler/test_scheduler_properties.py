"""What holds whatever peers do: random peers, random faults, every order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.node.transfer.scheduler import Finished, GiveUp, Policy

from tests.unit.transfer.scheduler.paper_network import KIB, PaperNetwork, PaperPeer, peer_id


@st.composite
def networks(draw: st.DrawFn) -> PaperNetwork:
    peers = [
        PaperPeer(
            peer_id(number),
            rate=draw(st.sampled_from([1e5, 1e6, 10e6, 100e6])),
            latency=draw(st.sampled_from([0.001, 0.05, 0.2])),
            fails=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
            corrupt=draw(st.sampled_from([0.0, 0.0, 0.0, 0.2])),
            busy_above=draw(st.sampled_from([None, None, None, 0, 1, 3])),
            freezes_at=draw(st.sampled_from([float("inf"), float("inf"), 0.1, 1.0])),
            lacks=draw(st.frozensets(st.integers(0, 40), max_size=10)),
        )
        for number in range(draw(st.integers(0, 5)))
    ]
    sizes = draw(st.lists(st.integers(0, 1024 * KIB), max_size=80))
    policy = Policy(
        most_chunks=draw(st.sampled_from([None, 1, 2, 8, 30])),
        most_bytes=draw(st.sampled_from([300 * KIB, 4096 * KIB, 64 << 20])),
        rounds=draw(st.integers(1, 4)),
        prefer_fast=draw(st.booleans()),
        first_window=draw(st.sampled_from([3, 64])),
        window=draw(st.sampled_from([5, 1024])),
    )
    here = draw(st.frozensets(st.integers(0, max(len(sizes) - 1, 0)), max_size=5))
    seed = draw(st.integers(0, 1 << 30))
    return PaperNetwork(peers, sizes, policy=policy, here=here, seed=seed)


@settings(max_examples=150, deadline=None)
@given(networks())
def test_every_chunk_ends_verified_or_with_all_the_answers(network: PaperNetwork) -> None:
    network.run()
    if isinstance(network.ended, Finished):
        assert sorted(set(network.verified)) == list(range(len(network.sizes)))
        return
    assert isinstance(network.ended, GiveUp)
    assert network.ended.lost
    for lost in network.ended.lost:
        assert lost.chunk not in network.verified
        asked = {ask.peer for ask in network.asked if ask.chunk == lost.chunk}
        assert asked <= set(lost.answers)
        assert set(lost.answers) <= set(network.peers)
        assert all(answer.reason for answer in lost.answers.values())


@settings(max_examples=60, deadline=None)
@given(networks())
def test_a_transfer_with_one_healthy_peer_always_completes(network: PaperNetwork) -> None:
    healthy = PaperPeer(peer_id(99), rate=1e6)
    network.peers[healthy.id] = healthy
    healthy.score.clock = network.clock
    network.run()
    assert isinstance(network.ended, Finished)


@settings(max_examples=60, deadline=None)
@given(networks())
def test_what_is_asked_for_twice_stays_within_a_twentieth(network: PaperNetwork) -> None:
    network.run()
    most = max(0.05 * sum(network.sizes), 2 * max(network.sizes, default=0))
    assert network.scheduler.tally.hedged_bytes <= most
