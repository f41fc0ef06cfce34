"""What a get leaves behind about itself, however it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from meshnode.errors import TransferError
from meshnode.node.content import Link
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Getter
from meshnode.node.transfer.trace import Trace
from trio.testing import MockClock


class Keeper:
    def __init__(self) -> None:
        self.traces: list[Trace] = []

    async def keep(self, trace: Trace) -> None:
        self.traces.append(trace)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def _getter(mesh, keeper: Keeper) -> Getter:
    return Getter(replace(mesh.context(MemoryStore()), traces=keeper))


async def _put(mesh, path: Path) -> Link:
    for zone in "abc":
        mesh.add(zone)
    link = (await mesh.putter().put([path])).sources[0].link
    assert link is not None
    return link


async def test_a_get_tells_what_its_peers_did_and_where_the_time_went(
    mesh, make_file, tmp_path, keeper, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1_000_000))
    report = await _getter(mesh, keeper).get(link, tmp_path / "out")
    (trace,) = keeper.traces
    assert (trace.kind, trace.outcome, trace.root) == ("get", "done", link.digest)
    assert (trace.name, trace.size) == ("input.bin", 1_000_000)
    assert {part.peer: part.nbytes for part in trace.peers} == report.bytes_from_peers
    assert trace.phase("peers").busy > 0
    assert trace.phase("resolving").busy > 0
    assert trace.counts["chunks"] == report.chunks


async def test_a_frozen_peer_is_named_as_late(
    mesh, make_file, tmp_path, keeper, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1_000_000))
    frozen = next(iter(mesh.peers.values()))
    frozen.frozen = True
    report = await _getter(mesh, keeper).get(link, tmp_path / "out")
    assert report.hedges > 0
    assert report.seconds < 2  # its latency was known: it is not waited for
    (trace,) = keeper.traces
    assert trace.counts["hedges"] == report.hedges
    late = next(part for part in trace.peers if part.peer == frozen.id)
    assert late.hedged > 0
    assert any("was late" in note.text and note.peer == frozen.id for note in trace.notes)


async def test_a_get_that_fails_or_is_cancelled_leaves_a_trace_too(
    mesh, make_file, tmp_path, keeper, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1_000_000))
    for peer in mesh.peers.values():
        peer.rate = 1e5
    with trio.move_on_after(0.5):
        await _getter(mesh, keeper).get(link, tmp_path / "out")
    for peer in mesh.peers.values():
        peer.down = True
    with pytest.raises(TransferError):
        await _getter(mesh, keeper).get(link, tmp_path / "out")
    assert [trace.outcome for trace in keeper.traces] == ["interrupted", "failed"]
    assert keeper.traces[1].phase("waiting").busy > 0
    assert "could not be fetched" in keeper.traces[1].error


async def test_a_stream_leaves_a_trace(mesh, make_file, keeper, autojump_clock: MockClock) -> None:
    link = await _put(mesh, make_file(300_000))
    async with _getter(mesh, keeper).stream(link) as parts:
        assert sum([len(part) async for part in parts]) == 300_000
    assert [(trace.kind, trace.outcome) for trace in keeper.traces] == [("stream", "done")]
