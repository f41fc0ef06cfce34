"""A put that broke off goes on where it was; what peers have is asked after and not sent again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Progress, PutOptions, StreamSource
from trio.testing import MockClock


def _sent(mesh) -> int:
    return sum(len(peer.puts) for peer in mesh.peers.values())


async def _interrupted(mesh, path, seconds: float) -> None:
    with trio.move_on_after(seconds) as scope:
        await mesh.putter().put([path])
    assert scope.cancelled_caught


async def test_a_put_cut_short_sends_only_what_is_missing_the_next_time(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(rate=3e5)
    path = make_file(6_000_000)
    await _interrupted(mesh, path, 3)
    before = _sent(mesh)
    assert before > 20
    report = await mesh.putter().put([path])
    source = report.sources[0]
    assert report.outcome == "stored"
    # No peer got a chunk twice.
    assert _sent(mesh) == source.receipts
    assert source.found_copies == before
    assert source.bytes_sent < 2 * 6_000_000 - source.found_copies * 16_000
    for digest, peers in source.placements.items():
        for peer in peers:
            assert (await mesh.peers[peer].store.has([digest])) == [True]


async def test_what_was_not_written_down_is_asked_for_again_and_nothing_false_is_claimed(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(rate=3e5)
    path = make_file(3_000_000)
    mesh.journal.broken = True
    await _interrupted(mesh, path, 1)
    mesh.journal.crash()
    mesh.journal.broken = False
    before = _sent(mesh)
    assert before
    report = await mesh.putter().put([path])
    assert report.outcome == "stored"
    assert report.sources[0].found_copies == 0
    # Peers that have a chunk sign again, and want no bytes.
    assert _sent(mesh) == report.sources[0].receipts


async def test_a_put_again_costs_one_question_to_each_peer_and_no_bytes(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        mesh.add()
    path = make_file(5_000_000)
    first = (await mesh.putter().put([path])).sources[0]
    before = _sent(mesh)
    events = []
    again = (await mesh.putter().put([path], progress=events.append)).sources[0]
    assert again.outcome == "stored"
    assert (again.found_copies, again.bytes_sent) == (first.receipts, 0)
    assert {d: set(p) for d, p in again.placements.items()} == {
        d: set(p) for d, p in first.placements.items()
    }
    assert _sent(mesh) == before
    assert all(len(peer.haves) <= 1 for peer in mesh.peers.values())
    assert sum(sum(peer.haves) for peer in mesh.peers.values()) == first.receipts
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.bytes_sent, last.bytes_held) == (0, last.bytes_wanted)


async def test_many_chunks_are_asked_after_in_few_questions(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.node.transfer.known_copies.BATCH", 16)
    for _ in range(2):
        mesh.add()
    path = make_file(5_000_000)
    first = (await mesh.putter().put([path])).sources[0]
    await mesh.putter().put([path])
    for peer in mesh.peers.values():
        assert max(peer.haves) == 16
        assert sum(peer.haves) == first.chunks


async def test_a_first_put_asks_nobody_what_it_has(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        mesh.add()
    await mesh.putter().put([make_file(2_000_000)])
    assert all(peer.haves == [] for peer in mesh.peers.values())
    assert mesh.journal.asked == []


async def test_a_copy_that_was_signed_for_and_is_gone_is_made_again(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add()
    path = make_file(2_000_000)
    first = (await mesh.putter().put([path])).sources[0]
    forgetful = mesh.peers[first.peers[0]]
    forgetful.store = MemoryStore()
    forgetful.puts.clear()
    again = (await mesh.putter().put([path])).sources[0]
    assert again.outcome == "stored"
    assert sorted(forgetful.puts) == sorted(again.placements)
    assert again.found_copies == first.receipts - first.chunks


@pytest.mark.parametrize("fault", ["down", "frozen"])
async def test_a_peer_that_cannot_be_asked_is_not_counted_unasked(
    mesh, make_file, autojump_clock: MockClock, fault: str
) -> None:
    for _ in range(2):
        mesh.add()
    path = make_file(1_000_000)
    first = (await mesh.putter().put([path])).sources[0]
    setattr(mesh.peers[first.peers[0]], fault, True)
    began = trio.current_time()
    again = (await mesh.putter().put([path])).sources[0]
    assert (again.outcome, again.copies) == ("weak", 2)
    assert first.peers[0] not in again.peers
    assert trio.current_time() - began < 40


async def test_a_holder_that_left_the_mesh_is_replaced(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add()
    path = make_file(1_000_000)
    first = (await mesh.putter().put([path])).sources[0]
    gone = first.peers[0]
    mesh.add()
    del mesh.peers[gone]
    again = (await mesh.putter().put([path])).sources[0]
    assert again.outcome == "stored"
    assert gone not in again.peers


async def test_a_holder_that_keeps_its_word_only_when_asked_is_found_out_by_reading(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        mesh.add()
    path = make_file(1_000_000)
    first = (await mesh.putter().put([path])).sources[0]
    liar = mesh.peers[first.peers[0]]
    liar.corrupting = True
    again = (await mesh.putter().put([path])).sources[0]
    assert again.outcome == "stored"
    assert liar.id not in again.peers
    assert not any(holder == liar.id for _, holder in mesh.journal.written)


async def test_one_copy_wanted_needs_no_question(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add()
    path = make_file(1_000_000)
    for _ in range(2):
        report = await mesh.putter().put([path], PutOptions(replication=1))
        assert report.outcome == "stored"
    assert mesh.journal.asked == []


async def test_a_stream_that_broke_off_leaves_its_copies_to_the_next_try(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add()
    data = random.Random(5).randbytes(20_000_000)

    async def stream(upto: int) -> AsyncIterator[bytes]:
        for start in range(0, upto, 1_000_000):
            await trio.sleep(0.1)
            yield data[start : start + 1_000_000]
        if upto < len(data):
            raise trio.BrokenResourceError("the client went away")

    failed = await mesh.putter().put([StreamSource("s", stream(17_000_000))])
    assert failed.outcome == "failed"
    assert mesh.journal.held
    report = await mesh.putter().put([StreamSource("s", stream(20_000_000))])
    assert report.outcome == "stored"
    assert report.sources[0].found_copies > 100
    assert _sent(mesh) == report.sources[0].receipts


async def test_the_journal_is_written_while_the_put_runs_and_when_it_ends(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(rate=3e5)
    path = make_file(6_000_000)
    with trio.move_on_after(2.5):
        await mesh.putter().put([path])
    assert mesh.journal.flushes == 3
    assert mesh.journal.noted == []
    assert len(mesh.journal.written) == _sent(mesh)
    assert len(mesh.journal.held) > 50


async def test_a_journal_that_cannot_be_written_harms_no_put(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add()
    mesh.journal.broken = True
    report = await mesh.putter().put([make_file(1_000_000)])
    assert report.outcome == "stored"
    assert any("journal" in note.text for note in mesh.traces[-1].notes)
