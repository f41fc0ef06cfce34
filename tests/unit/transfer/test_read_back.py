"""What a put makes of holders that do not answer when copies are read back."""

from __future__ import annotations

import pytest
import trio
from meshnode.node.exchange import Lane
from meshnode.node.transfer import put_source
from trio.testing import MockClock


async def test_one_lost_stream_costs_a_holder_nothing(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    peers = [mesh.add(zone).id for zone in "ab"]
    mesh.exchange.fail_gets = 1
    (source,) = (await mesh.putter().put([make_file(300_000)])).sources
    assert (source.outcome, source.warnings) == ("stored", ())
    assert set(source.peers) == set(peers)
    assert mesh.exchange.fail_gets == 0


async def test_a_busy_holder_is_asked_again_when_it_said(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for zone in "ab":
        mesh.add(zone, most_at_once=1, rate=1e6)
    (source,) = (await mesh.putter().put([make_file(60_000)])).sources
    assert (source.outcome, source.copies) == ("stored", 3)


async def test_receipts_of_a_holder_that_cannot_be_asked_count_with_a_warning(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for zone in "ab":
        mesh.add(zone)
    mesh.exchange.fail_gets = 1000
    (source,) = (await mesh.putter().put([make_file(300_000)])).sources
    assert (source.outcome, source.copies, source.sampled) == ("stored", 3, 0)
    assert len(source.warnings) == 2
    for peer in mesh.peers:
        assert any(peer.short in warning for warning in source.warnings)
    assert "not confirmed" in source.warnings[0]
    assert "broke off" in source.warnings[0]


@pytest.mark.parametrize("lie", ["forgetful", "corrupting"])
async def test_a_false_receipt_is_no_accident(
    mesh, make_file, autojump_clock: MockClock, lie: str
) -> None:
    liar, _ = mesh.add("a", **{lie: True}), mesh.add("b")
    (source,) = (await mesh.putter().put([make_file(300_000)])).sources
    assert (source.outcome, source.copies, source.warnings) == ("weak", 2, ())
    assert liar.id not in source.peers


async def test_a_holder_that_freezes_costs_the_last_question_its_silence_not_the_deadline(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, other = mesh.add("a"), mesh.add("b")
    calm = await mesh.putter().put([make_file(300_000, seed=1)])
    real_read_back = put_source.read_back

    async def read_back(*args: object) -> object:
        frozen.frozen = True
        return await real_read_back(*args)

    monkeypatch.setattr(put_source, "read_back", read_back)
    (source,) = (await mesh.putter().put([make_file(300_000, seed=2)])).sources
    assert (source.outcome, source.copies) == ("stored", 3)
    assert source.seconds < calm.seconds + 1.5
    (warning,) = source.warnings
    assert frozen.id.short in warning
    assert "did not answer" in warning
    assert source.sampled
    assert set(source.peers) == {frozen.id, other.id}


async def _freeze_after(peer, puts: int) -> None:
    while len(peer.puts) < puts:  # noqa: ASYNC110  virtual time
        await trio.sleep(0.001)
    peer.frozen = True


async def test_many_sources_do_not_each_wait_for_the_same_frozen_holder(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    frozen, _ = mesh.add("a"), mesh.add("b")
    for zone in "cd":
        mesh.add(zone)
    files = [make_file(60_000, f"file-{seed}", seed) for seed in range(40)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_freeze_after, frozen, 3)
        report = await mesh.putter().put(files)
        nursery.cancel_scope.cancel()
    assert {source.outcome for source in report.sources} == {"stored"}
    # Ten after the other at a quarter of a second each, were it asked by each of them.
    assert report.seconds < 6


async def test_copies_that_were_lost_are_made_again_in_the_lane_of_repair(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add("a", forgetful=True)
    for zone in "bc":
        mesh.add(zone)
    (source,) = (await mesh.putter().put([make_file(300_000)])).sources
    assert (source.outcome, source.copies) == ("stored", 3)
    lanes = mesh.exchange.put_lanes
    assert 0 < lanes[Lane.REPAIR] <= source.chunks
    assert lanes[Lane.INTERACTIVE] == 2 * source.chunks
    assert lanes.total() == sum(lanes[lane] for lane in (Lane.REPAIR, Lane.INTERACTIVE))


async def test_copies_made_again_have_no_deadline_but_the_silence_of_their_peer(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add("a", forgetful=True)
    other, spare = mesh.add("b"), mesh.add("b")
    mesh.configure(chunk_timeout_secs=2)
    async with trio.open_nursery() as nursery:

        async def slow_down() -> None:
            while not mesh.exchange.put_lanes[Lane.REPAIR]:  # noqa: ASYNC110  virtual time
                await trio.sleep(0.001)
            other.rate = spare.rate = 20_000.0  # a chunk takes longer than two seconds

        nursery.start_soon(slow_down)
        (source,) = (await mesh.putter().put([make_file(300_000)])).sources
        nursery.cancel_scope.cancel()
    assert (source.outcome, source.retries) == ("stored", 0)
