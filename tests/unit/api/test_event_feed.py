"""The bounded feed between work and its audience."""

from __future__ import annotations

import trio
from meshnode.node.api.event_feed import EventFeed


async def test_of_progress_events_only_the_newest_is_kept() -> None:
    feed = EventFeed()
    for done in range(1000):
        feed.emit({"type": "progress", "bytes_done": done})
    assert await feed.take() == [{"type": "progress", "bytes_done": 999}]


async def test_other_events_are_bounded_and_their_loss_is_told() -> None:
    feed = EventFeed(limit=3)
    for number in range(5):
        feed.emit({"type": "file", "path": str(number)})
    taken = await feed.take()
    assert taken is not None
    assert taken[0] == {"type": "lost", "events": 2}
    assert [event["path"] for event in taken[1:]] == ["2", "3", "4"]


async def test_events_before_the_close_are_given_before_the_end() -> None:
    feed = EventFeed()
    feed.emit({"type": "started"})
    feed.emit({"type": "progress"})
    feed.close()
    assert await feed.take() == [{"type": "started"}, {"type": "progress"}]
    assert await feed.take() is None
    assert await feed.take() is None


async def test_take_waits_for_the_next_event(autojump_clock: trio.testing.MockClock) -> None:
    feed = EventFeed()
    taken: list[object] = []

    async def take() -> None:
        taken.append(await feed.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        feed.emit({"type": "started"})
    assert taken == [[{"type": "started"}]]


async def test_a_cancelled_take_loses_nothing() -> None:
    feed = EventFeed()
    feed.emit({"type": "started"})
    with trio.CancelScope() as scope:
        scope.cancel()
        await feed.take()
    assert await feed.take() == [{"type": "started"}]
