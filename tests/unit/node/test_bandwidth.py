"""A running node follows its timetable."""

from __future__ import annotations

import time

import trio
from meshnode.config import BandwidthSettings
from meshnode.node.bandwidth import follow_schedule, limits_now
from meshnode.node.exchange import open_traffic

BASE = BandwidthSettings(
    upload=5_000_000, schedule=("mon 08:00-18:00 upload=1MB/s per_peer_download=2MB/s",)
)


def _monday(hour: int, minute: int = 0) -> time.struct_time:
    return time.struct_time((2024, 1, 1, hour, minute, 0, 0, 1, -1))


def test_what_holds_now_is_base_and_timetable_together():
    assert limits_now(BASE, _monday(7, 59)).upload == 5_000_000
    by_day = limits_now(BASE, _monday(8))
    assert (by_day.upload, by_day.per_peer_download, by_day.download) == (1_000_000, 2_000_000, 0)


async def test_limits_change_on_a_running_node_when_their_time_comes(autojump_clock):
    async with (
        open_traffic(limits_now(BASE, _monday(7))) as traffic,
        trio.open_nursery() as nursery,
    ):
        hour = 7
        nursery.start_soon(follow_schedule, traffic, BASE, lambda: _monday(hour))
        await trio.sleep(60)
        assert traffic.limits.upload == 5_000_000
        hour = 9
        await trio.sleep(60)
        assert traffic.limits.upload == 1_000_000
        assert traffic.up.shaper.limit == 1_000_000
        nursery.cancel_scope.cancel()
