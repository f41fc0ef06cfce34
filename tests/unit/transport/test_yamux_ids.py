"""Which ids a peer may use, and what remembering that costs."""

from __future__ import annotations

import pytest
from meshnode.node.transport.yamux_frames import YamuxError
from meshnode.node.transport.yamux_ids import PeerIds


def test_ids_skipped_lately_can_be_used_once() -> None:
    ids = PeerIds(1)
    ids.use(1)
    ids.use(129)
    assert not ids.used(3)
    ids.use(3)
    for stream_id in (3, 129, 1):
        with pytest.raises(YamuxError, match="twice"):
            ids.use(stream_id)


def test_of_the_ids_skipped_the_latest_are_remembered() -> None:
    ids = PeerIds(1)
    for highest in (101, 203, 305):
        ids.use(highest)
    latest = [*range(175, 203, 2), *range(205, 305, 2)]
    assert [stream_id for stream_id in range(1, 306, 2) if not ids.used(stream_id)] == latest


def test_a_long_jump_leaves_nothing_to_remember_and_counts_as_used() -> None:
    ids = PeerIds(2)
    ids.use(100)
    for jump in range(1, 2000):
        ids.use(100 + jump * 2048)
        assert not ids._skipped
    assert ids.used(2)
    assert ids.used(100 + 2048 - 2)
    with pytest.raises(YamuxError, match="twice"):
        ids.use(2)


@pytest.mark.parametrize("jump", [2, 4, 64, 128, 130, 132, 2048])
def test_no_jump_makes_more_than_a_few_ids_to_be_remembered(jump: int) -> None:
    ids = PeerIds(1)
    for stream_id in range(1, 300 * jump, jump):
        ids.use(stream_id)
        assert len(ids._skipped) <= 64
