"""How much of a put is under way, and what happens to its long tail."""

from __future__ import annotations

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.node.exchange.stats import PeerStatsTable
from meshnode.node.transfer import PutOptions
from meshnode.node.transfer.upload_flow import Lateness, PeerWindows, UploadSlots
from trio.testing import MockClock

MIB = 1 << 20


def two_copies(mesh) -> None:
    mesh.config = mesh.config.with_overrides({"storage.replication": 2})


async def test_a_chunk_that_is_sent_makes_room_before_the_disk_of_its_peer_has_it(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    two_copies(mesh)
    only = mesh.add(latency=0.001, disk=0.5)
    report = await mesh.putter().put([make_file(4_000_000)], PutOptions(chunker="fixed"))
    # 62 chunks, four at a time, would wait for that disk sixteen times.
    assert report.seconds < 4
    assert len(only.puts) == report.sources[0].chunks


async def test_one_upload_at_a_time_waits_for_every_receipt(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    two_copies(mesh)
    mesh.configure(max_concurrent_uploads=1)
    only = mesh.add(latency=0.0, disk=0.5)
    report = await mesh.putter().put([make_file(1_000_000)], PutOptions(chunker="fixed"))
    assert report.seconds > 0.5 * len(only.puts)


async def test_automatic_uploads_find_a_depth_that_hides_a_long_line(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    two_copies(mesh)
    mesh.add(latency=0.3)
    path = make_file(20_000_000)
    mesh.configure(max_concurrent_uploads="auto")
    report = await mesh.putter().put([path], PutOptions(chunker="fixed"))
    assert report.outcome == "stored"
    assert mesh.exchange.most_puts > 8


async def test_a_frozen_holder_of_the_last_copies_costs_its_lateness_not_its_deadline(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    two_copies(mesh)
    peers = [mesh.add() for _ in range(3)]
    mesh.configure(peer_response_timeout_secs=60, chunk_timeout_secs=100)
    path = make_file(4_000_000)

    async def freeze() -> None:
        await trio.sleep(0.12)
        peers[0].latency = 50.0  # alive, and takes for ever

    async with trio.open_nursery() as nursery:
        nursery.start_soon(freeze)
        report = await mesh.putter().put([path], PutOptions(chunker="fixed"))
    assert report.outcome == "stored"
    assert report.sources[0].copies == 2
    trace = mesh.traces[-1]
    assert trace.seconds - trace.phase("confirming").busy < 5
    moved = trace.counts.get("moved", 0)
    assert trace.counts.get("hedges", 0) + moved >= 1
    wasted = sum(part.wasted for part in trace.peers)
    assert wasted <= 0.05 * 4_100_000 + moved * 66_000
    assert peers[0].id in {part.peer for part in trace.peers if part.hedged}


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "measured"])
async def test_a_slow_peer_does_not_hold_up_those_that_are_fast(
    mesh, make_file, autojump_clock: MockClock, known: bool
) -> None:
    two_copies(mesh)
    for _ in range(3):
        mesh.add(rate=1e6, line=trio.Lock())
    equal = await mesh.putter().put([make_file(12_000_000, "a", 1)], PutOptions(chunker="fixed"))
    slow = next(iter(mesh.peers.values()))
    slow.rate = 1e5
    if known:
        await mesh.putter().put([make_file(3_000_000, "c", 3)], PutOptions(chunker="fixed"))
        slow.puts.clear()
    else:
        mesh.exchange.forget_statistics()
    uneven = await mesh.putter().put([make_file(12_000_000, "b", 2)], PutOptions(chunker="fixed"))
    assert uneven.outcome == "stored"
    # Two of three lines are left, and what the slow one takes until it is known. Were each chunk to
    # wait for the member ranked first, it would be four times as long.
    assert uneven.seconds < 2.2 * equal.seconds
    assert slow.puts or known


async def test_a_zone_is_not_given_up_for_speed(mesh, make_file, autojump_clock: MockClock) -> None:
    two_copies(mesh)
    far = mesh.add("far", rate=2e5)
    mesh.add("default")
    report = await mesh.putter().put([make_file(2_000_000)])
    assert report.sources[0].survives_zones == 1
    assert set(report.sources[0].peers) == {far.id}


async def test_slots_are_free_again_when_everything_is_sent(autojump_clock: MockClock) -> None:
    slots = UploadSlots(1)
    strict = UploadSlots(2)
    async with strict.turn() as first, strict.turn():
        parts = [first.part(), first.part()]
        parts[0].sent()
        parts[0].sent()
        with trio.move_on_after(1) as scope:
            async with strict.turn():
                pass
        assert scope.cancelled_caught
        parts[1].sent()
        async with strict.turn():
            pass
    async with slots.turn() as only:
        only.part().sent()
        with trio.move_on_after(1) as scope:
            async with slots.turn():
                pass
        assert scope.cancelled_caught


def test_a_peer_may_have_a_second_of_its_rate_under_way_and_never_less_than_two_chunks() -> None:
    now = 0.0
    stats = PeerStatsTable(clock=lambda: now, wall=lambda: now)
    peer = PeerId.from_ed25519(b"p" * 32)
    windows = PeerWindows(stats)
    for _ in range(4):
        assert windows.room(peer, MIB)
        windows.begin(peer, MIB)
    assert not windows.room(peer, MIB)
    upload = stats.of(peer).upload
    upload.began()
    now = 1.0
    upload.ended(8 * MIB)
    assert windows.room(peer, MIB)
    upload.began()
    now = 100.0
    upload.ended(MIB)
    assert not windows.room(peer, MIB)
    for _ in range(3):
        windows.end(peer, MIB)
    assert windows.room(peer, MIB)


async def test_who_waits_for_room_is_woken_when_there_is_some(autojump_clock: MockClock) -> None:
    windows = PeerWindows(PeerStatsTable(clock=trio.current_time, wall=trio.current_time))
    peer = PeerId.from_ed25519(b"p" * 32)
    windows.begin(peer, MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(windows.change)
        await trio.testing.wait_all_tasks_blocked()
        windows.end(peer, MIB)


def test_the_slow_third_does_not_decide_what_is_late() -> None:
    lateness = Lateness(5.0)
    assert lateness.late_after() == 5.0
    for number in range(60):
        lateness.took(10.0 if number % 3 == 0 else 1.0)
    assert lateness.late_after() == 3.0


@pytest.mark.parametrize("size", [MIB, 4 * MIB])
def test_what_is_sent_twice_stays_below_five_in_a_hundred(size: int) -> None:
    lateness = Lateness(5.0)
    lateness.wanted(100 * size)
    spent = 0
    while lateness.may_spend(size):
        lateness.spend(size)
        spent += size
    assert spent == 5 * size


def test_the_first_late_copy_of_a_small_put_may_be_sent_twice_and_no_other() -> None:
    lateness = Lateness(5.0)
    lateness.wanted(3 * MIB)
    assert lateness.may_spend(MIB)
    lateness.spend(MIB)
    assert not lateness.may_spend(MIB)
