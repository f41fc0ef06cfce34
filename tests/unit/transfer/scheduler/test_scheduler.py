"""The policies of the scheduler, one by one, with peers on paper."""

from __future__ import annotations

import pytest
from meshnode.node.transfer.scheduler import (
    Ask,
    Came,
    Cancel,
    Decision,
    Failed,
    Fault,
    Finished,
    Found,
    GiveUp,
    LookUp,
    Moved,
    PeerJoined,
    PeerLeft,
    Policy,
    Scheduler,
    Stopped,
    Verified,
    What,
    Why,
)
from meshnode.node.transfer.scheduler import story as story_module

from tests.unit.transfer.scheduler.paper_network import (
    PaperNetwork,
    PaperPeer,
    PaperScore,
    peer_id,
)

MIB = 1 << 20


def _started(network: PaperNetwork, count: int) -> list[Decision]:
    """Decisions after the first lookup of `count` chunks came back."""
    scheduler = network.scheduler
    assert scheduler.step(0.0) == [LookUp(tuple(range(count)), fresh=False)]
    holders = {index: list(network.peers) for index in range(count)}
    return scheduler.step(0.0, [Found(holders)])


def _asks(decisions: list[Decision]) -> list[Ask]:
    return [decision for decision in decisions if isinstance(decision, Ask)]


def _known(number: int, rate: float = 10e6, latency: float = 0.01) -> PaperPeer:
    return PaperPeer(peer_id(number), rate, latency, score=PaperScore(latency, 2 * latency, rate))


# --- whom to ask ------------------------------------------------------------------------------


def test_chunks_are_begun_in_order_at_the_peer_that_is_done_first() -> None:
    slow, fast = _known(1, 1e6), _known(2, 50e6)
    network = PaperNetwork([slow, fast], [MIB] * 4, policy=Policy(most_chunks=2))
    asks = _asks(_started(network, 4))
    assert [(ask.chunk, ask.peer) for ask in asks] == [(0, fast.id), (1, fast.id)]


def test_a_full_fast_peer_is_waited_for_when_the_slow_one_would_take_longer() -> None:
    slow, fast = _known(1, 0.1e6), _known(2, 4e6)
    network = PaperNetwork([slow, fast], [MIB] * 20, policy=Policy(most_chunks=20))
    asks = _asks(_started(network, 20))
    assert {ask.peer for ask in asks} == {fast.id}
    assert len(asks) == 3  # about a second of its data


def test_a_peer_is_not_asked_for_what_would_time_out_in_its_line() -> None:
    slow = _known(1, 0.1e6)
    network = PaperNetwork([slow], [MIB] * 9, policy=Policy(most_chunks=9, chunk_timeout=15))
    assert len(_asks(_started(network, 9))) == 1


def test_without_preference_holders_take_turns() -> None:
    slow, fast = _known(1, 9e6), _known(2, 50e6)
    network = PaperNetwork([slow, fast], [MIB] * 6, policy=Policy(most_chunks=6, prefer_fast=False))
    asks = _asks(_started(network, 6))
    assert [ask.peer for ask in asks] == [slow.id, fast.id] * 3


def test_peers_nothing_is_known_of_are_tried_soon_and_slow_ones_now_and_then() -> None:
    peers = [_known(1, 20e6), *(PaperPeer(peer_id(n), 20e6) for n in range(2, 6)), _known(9, 2e6)]
    network = PaperNetwork(peers, [MIB] * 300, policy=Policy(most_chunks=12))
    network.run()
    assert isinstance(network.ended, Finished)
    first = {ask.peer for ask in network.asked[:60]}
    assert {peer.id for peer in peers[:5]} <= first
    slow = sum(ask.peer == peers[-1].id for ask in network.asked)
    assert 0 < slow < 30


def test_bytes_in_flight_are_bounded() -> None:
    network = PaperNetwork(
        [_known(1, 100e6)], [MIB] * 50, policy=Policy(most_chunks=50, most_bytes=5 * MIB)
    )
    network.run()
    assert network.most_bytes == 5 * MIB


def test_one_at_a_time_is_strictly_serial_in_order() -> None:
    peers = [PaperPeer(peer_id(n), fails=0.3) for n in range(1, 4)]
    network = PaperNetwork(peers, [MIB] * 30, policy=Policy(most_chunks=1, rounds=9), seed=4)
    network.run()
    assert network.verified == list(range(30))
    assert network.most_under_way == 1
    assert [ask.chunk for ask in network.asked] == sorted(ask.chunk for ask in network.asked)


# --- late peers -------------------------------------------------------------------------------


def test_a_silent_peer_is_hedged_and_the_loser_cancelled() -> None:
    frozen, other = _known(1, 50e6), _known(2, 10e6)
    network = PaperNetwork([frozen, other], [MIB], policy=Policy())
    (ask,) = _asks(_started(network, 1))
    assert ask.peer == frozen.id
    assert _asks(network.scheduler.step(0.05)) == []
    (hedge,) = _asks(network.scheduler.step(0.11))
    assert (hedge.peer, hedge.why) == (other.id, Why.HEDGE)
    decisions = network.scheduler.step(0.3, [Verified(0, hedge.request)])
    assert [type(decision) for decision in decisions] == [Cancel, Finished]
    assert network.scheduler.tally.hedged_bytes == 0  # it sent nothing: nothing came twice


def test_of_a_peer_whose_latency_is_unknown_the_response_timeout_is_the_limit() -> None:
    network = PaperNetwork([PaperPeer(peer_id(1)), PaperPeer(peer_id(2))], [1000])
    _started(network, 1)
    assert _asks(network.scheduler.step(4.9)) == []
    assert len(_asks(network.scheduler.step(5.0))) == 1


def test_a_peer_that_was_silent_is_the_last_choice_until_it_delivers() -> None:
    frozen, other = _known(1, 50e6), _known(2, 5e6)
    network = PaperNetwork([frozen, other], [MIB] * 20, policy=Policy(most_chunks=1))
    network.scheduler._state.policy = Policy(most_chunks=2)
    asks = _asks(_started(network, 20))
    hedges = _asks(network.scheduler.step(0.2))
    later = _asks(network.scheduler.step(0.5, [Verified(a.chunk, a.request) for a in hedges]))
    assert asks
    assert {ask.peer for ask in later} == {other.id}


def test_hedges_stay_within_a_twentieth_of_the_bytes_however_many_are_late() -> None:
    peers = [_known(n, 10e6) for n in range(1, 5)]
    for peer in peers[:2]:
        peer.rate = 0.4e6  # much slower than it was thought
    network = PaperNetwork(peers, [MIB] * 100, policy=Policy(chunk_timeout=60))
    network.run()
    assert isinstance(network.ended, Finished)
    twice = network.scheduler.tally.hedged_bytes
    assert 0 < twice <= 5 * MIB


def test_what_a_peer_has_not_begun_moves_to_an_idle_faster_one() -> None:
    slow, fast = _known(1, 10e6), _known(2, 10e6)
    network = PaperNetwork([slow, fast], [MIB] * 8, policy=Policy(most_chunks=8))
    slow.rate = 0.5e6
    network.run()
    moved = [ask for ask in network.asked if ask.why is Why.STOLEN]
    assert moved
    assert {ask.peer for ask in moved} == {fast.id}
    assert network.now < 3


def test_the_last_chunks_get_one_backup_each() -> None:
    slow, fast = _known(1, 10e6), _known(2, 10e6)
    network = PaperNetwork([slow, fast], [MIB] * 2, policy=Policy(most_chunks=2))
    slow.rate = 0.05e6  # twenty seconds for what the other does in a tenth
    network.run()
    assert network.now < 2
    assert sum(ask.why is not Why.FIRST for ask in network.asked) == 1


# --- peers that fail --------------------------------------------------------------------------


def test_another_holder_is_asked_at_once_and_then_all_again_after_a_pause() -> None:
    peers = [PaperPeer(peer_id(n), fails=1.0) for n in (1, 2)]
    network = PaperNetwork(peers, [1000], policy=Policy(rounds=3))
    network.run()
    assert isinstance(network.ended, GiveUp)
    (lost,) = network.ended.lost
    assert set(lost.answers) == set(network.peers)
    assert len(network.asked) == 6
    # Fresh holders are looked up for each further round.
    assert [look.fresh for look in network.lookups] == [False, True, True]
    assert network.scheduler.story.counts[What.WAITS] == 2


def test_a_peer_that_sends_false_bytes_loses_everything_at_once() -> None:
    bad, good = _known(1, 50e6), _known(2, 1e6)
    network = PaperNetwork([bad, good], [MIB] * 3, policy=Policy(most_chunks=3))
    asks = _asks(_started(network, 3))
    assert {ask.peer for ask in asks} == {bad.id}
    decisions = network.scheduler.step(0.1, [Failed(asks[0].request, Fault.CORRUPT, "false")])
    cancelled = {d.request for d in decisions if isinstance(d, Cancel)}
    assert cancelled == {asks[1].request, asks[2].request}
    assert {ask.peer for ask in _asks(decisions)} == {good.id}


def test_a_busy_peer_rests_as_it_asked_and_is_then_asked_for_less_at_once() -> None:
    only = _known(1, 50e6)
    network = PaperNetwork([only], [MIB] * 4, policy=Policy(most_chunks=4))
    asks = _asks(_started(network, 4))
    assert len(asks) == 4
    refused = [Failed(ask.request, Fault.BUSY, "busy", 0.5) for ask in asks[2:]]
    assert _asks(network.scheduler.step(0.01, refused)) == []
    arrived = [Verified(ask.chunk, ask.request) for ask in asks[:2]]
    assert _asks(network.scheduler.step(0.3, arrived)) == []
    later = network.scheduler.step(0.01 + 0.5 + 0.2)
    assert 1 <= len(_asks(later)) <= 2


def test_a_peer_that_leaves_gives_up_what_it_has_and_is_asked_again_when_it_joins() -> None:
    leaving, other = _known(1, 50e6), _known(2, 1e6)
    network = PaperNetwork([leaving, other], [MIB] * 2, policy=Policy(most_chunks=2))
    asks = _asks(_started(network, 2))
    decisions = network.scheduler.step(0.1, [PeerLeft(leaving.id)])
    assert [type(decision) for decision in decisions] == [Cancel, Cancel, Ask, Ask]
    assert {ask.peer for ask in _asks(decisions)} == {other.id}
    assert len(asks) == 2


def test_a_peer_that_seemed_to_have_left_is_asked_again_when_a_fresh_lookup_names_it() -> None:
    only = _known(1, 50e6)
    network = PaperNetwork([only], [MIB], policy=Policy(rounds=3))
    _started(network, 1)
    network.scheduler.step(0.1, [PeerLeft(only.id)])
    assert network.scheduler.step(5.0) == [LookUp((0,), fresh=True)]
    (again,) = _asks(network.scheduler.step(5.1, [Found({0: [only.id]})]))
    assert again.peer == only.id


def test_somebody_who_joins_ends_the_wait_for_another_round() -> None:
    gone = PaperPeer(peer_id(1), fails=1.0)
    network = PaperNetwork([gone], [1000], policy=Policy(rounds=9))
    (ask,) = _asks(_started(network, 1))
    network.scheduler.step(0.1, [Failed(ask.request, Fault.FAILED, "cut off")])
    joined = network.scheduler.step(0.1, [PeerJoined(peer_id(7))])
    assert joined == [LookUp((0,), fresh=True)]


def test_after_a_failure_one_request_goes_there_until_it_delivers() -> None:
    only = _known(1, 50e6)
    network = PaperNetwork([only], [MIB] * 4, policy=Policy(most_chunks=4))
    asks = _asks(_started(network, 4))
    failed = [Failed(ask.request, Fault.FAILED, "cut off") for ask in asks]
    network.scheduler.step(0.1, failed)
    holders = {index: [only.id] for index in range(4)}
    assert len(network.scheduler.step(2.0)) == 1  # a lookup
    (probe,) = _asks(network.scheduler.step(2.0, [Found(holders)]))
    more = _asks(network.scheduler.step(2.1, [Verified(probe.chunk, probe.request)]))
    assert len(more) == 3


# --- readers ----------------------------------------------------------------------------------


def test_only_what_is_wanted_is_begun_and_what_is_no_longer_wanted_is_cancelled() -> None:
    policy = Policy(most_chunks=3, first_window=8, window=8)
    network = PaperNetwork([_known(1, 50e6)], [MIB] * 40, policy=policy)
    scheduler = network.scheduler
    scheduler.step(0.0, [Moved(0, 5)])
    found = Found({index: list(network.peers) for index in range(40)})
    first = _asks(scheduler.step(0.0, [found]))
    assert [ask.chunk for ask in first] == [0, 1, 2]
    decisions = scheduler.step(0.1, [Moved(30, 35)])
    assert {d.request for d in decisions if isinstance(d, Cancel)} == {a.request for a in first}
    assert [d.chunks[0] for d in decisions if isinstance(d, LookUp)] == [30]
    asks = _asks(scheduler.step(0.2, [found]))
    assert [ask.chunk for ask in asks] == [30, 31, 32]


def test_a_reader_that_goes_on_keeps_what_is_under_way() -> None:
    network = PaperNetwork([_known(1, 50e6)], [MIB] * 9, policy=Policy(most_chunks=3))
    scheduler = network.scheduler
    scheduler.step(0.0, [Moved(0, 3)])
    asks = _asks(scheduler.step(0.0, [Found({i: list(network.peers) for i in range(9)})]))
    decisions = scheduler.step(0.1, [Verified(0, asks[0].request), Moved(1, 4)])
    assert [(type(d), getattr(d, "chunk", None)) for d in decisions] == [(Ask, 3)]


def test_what_came_before_can_be_wanted_again() -> None:
    network = PaperNetwork([_known(1, 50e6)], [MIB] * 3, open_ended=True)
    asks = _asks(_started(network, 3))
    scheduler = network.scheduler
    assert scheduler.step(0.1, [Verified(ask.chunk, ask.request) for ask in asks]) == []
    assert scheduler.step(0.2, [Moved(0, 3, again=(0, 1, 2))]) == [LookUp((0, 1, 2), fresh=False)]


def test_after_stopping_nothing_is_under_way() -> None:
    network = PaperNetwork([_known(1, 50e6)], [MIB] * 3)
    asks = _asks(_started(network, 3))
    decisions = network.scheduler.step(0.1, [Stopped()])
    assert {d.request for d in decisions if isinstance(d, Cancel)} == {a.request for a in asks}
    assert network.scheduler.step(0.2, [Verified(0, asks[0].request)]) == []
    assert network.scheduler.wake_at() is None


# --- the story --------------------------------------------------------------------------------


def test_the_story_tells_who_was_asked_for_what_and_why() -> None:
    frozen, other = _known(1, 50e6), _known(2, 10e6)
    network = PaperNetwork([frozen, other], [MIB])
    (ask,) = _asks(_started(network, 1))
    network.scheduler.step(0.05, [Came(ask.request, 0, 0.05)])
    (hedge,) = _asks(network.scheduler.step(0.4))
    network.scheduler.step(0.5, [Verified(0, hedge.request)])
    told = [(step.what, step.peer, step.detail) for step in network.scheduler.story.steps]
    assert told == [
        (What.ASKED, frozen.id, "first"),
        (What.ASKED, other.id, "hedge"),
        (What.CAME, other.id, ""),
        (What.CANCELLED, frozen.id, "another peer was first"),
    ]
    assert all(str(step) for step in network.scheduler.story.steps)


def test_the_story_of_a_long_transfer_keeps_its_beginning_and_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(story_module, "_FIRST_KEPT", 50)
    monkeypatch.setattr(story_module, "_LAST_KEPT", 150)
    network = PaperNetwork([_known(1, 100e6)], [1000] * 200)
    network.run()
    story = network.scheduler.story
    assert len(story.steps) == 200
    assert story.left_out == sum(story.counts.values()) - 200
    assert story.steps[0].chunk == 0
    assert story.steps[-1].chunk == 199


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_fetch_is_finished_at_once(count: int) -> None:
    scheduler: Scheduler = PaperNetwork([], [1000] * count).scheduler
    decisions = scheduler.step(0.0)
    assert (decisions == [Finished()]) == (count == 0)
