"""The bandwidth limits of the configuration, as they hold at this time of the week."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import trio

from ..config import BandwidthSettings, limits_at, parse_entry
from .exchange import BandwidthLimits, Traffic

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECS = 20.0
"""The timetable is kept in minutes; clocks are set and machines sleep, so it is looked at often."""


def limits_now(settings: BandwidthSettings, local: time.struct_time) -> BandwidthLimits:
    """What holds at the local time `local`."""
    base = {
        "upload": settings.upload,
        "download": settings.download,
        "per_peer_upload": settings.per_peer_upload,
        "per_peer_download": settings.per_peer_download,
    }
    schedule = [parse_entry(text) for text in settings.schedule]
    minute = local.tm_hour * 60 + local.tm_min
    return BandwidthLimits(**limits_at(base, schedule, local.tm_wday, minute))


async def follow_schedule(
    traffic: Traffic,
    settings: BandwidthSettings,
    local: Callable[[], time.struct_time] = time.localtime,
) -> None:
    """Keep the limits of `traffic` as the timetable says, until cancelled."""
    while settings.schedule:
        limits = limits_now(settings, local())
        if limits != traffic.limits:
            log.info("bandwidth_limits_changed", upload=limits.upload, download=limits.download)
            traffic.set_limits(limits)
        await trio.sleep(_LOOK_EVERY_SECS)
