from __future__ import annotations

import json

import trio
from meshnode.dht.peer_id import PeerId
from meshnode.node.transfer.events import (
    FileDone,
    Finished,
    PeerNote,
    Progress,
    ProgressMeter,
    Started,
    TransferEvent,
)
from trio.testing import MockClock


async def test_progress_is_told_at_most_ten_times_a_second(autojump_clock: MockClock) -> None:
    told: list[TransferEvent] = []
    meter = ProgressMeter(told.append)
    for _ in range(2000):
        meter.advance(nbytes=100, chunks=1)
        await trio.sleep(0.001)
    meter.flush()
    assert 15 <= len(told) <= 22
    assert told[-1] == Progress(200_000, 2000)


async def test_nothing_is_told_twice(autojump_clock: MockClock) -> None:
    told: list[TransferEvent] = []
    meter = ProgressMeter(told.append)
    meter.advance(nbytes=1)
    meter.flush()
    meter.flush()
    assert told == [Progress(1, 0)]


def test_every_event_becomes_json_with_a_type_of_its_own() -> None:
    events: list[TransferEvent] = [
        Started("a", None, 1),
        Progress(1, 2, 3),
        FileDone("f", "failed", "why"),
        PeerNote(PeerId.from_ed25519(bytes(32)), "silent"),
        Finished("a", "stored", 1.5),
    ]
    types = {json.loads(json.dumps(event.to_json()))["type"] for event in events}
    assert types == {"started", "progress", "file", "peer", "finished"}
