"""Entries of a timetable: `mon-fri 08:00-18:00 upload=1MB/s download=5MB/s`, in local time.

entry  = [days] hours limit...
days   = day or day-day, several separated by commas; none: every day
hours  = HH:MM-HH:MM; an end at or before the start is on the next day, 24:00 is midnight
limit  = name=rate; a rate of 0 lifts the limit
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .sizes import format_rate, format_size, parse_rate

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LIMITS = ("upload", "download", "per_peer_upload", "per_peer_download")
LEAST_RATE, MOST_RATE = 64 * 1024, 100 * 1024**3
SCHEDULE_EXAMPLE = (
    '"mon-fri 08:00-18:00 upload=1MB/s download=5MB/s" (days are optional, local time, 0 lifts a '
    "limit; on a command line separate entries by semicolons)"
)

_HOURS = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})", re.ASCII)
_DAY_MINUTES = 24 * 60
_MAX_CHARS = 300


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """Limits that hold on some days between two times.

    `begin` and `end` are minutes since midnight, `begin` < 1440; an `end` not above `begin` is on
    the day after. `days`: 0 is Monday.
    """

    days: frozenset[int]
    begin: int
    end: int
    limits: tuple[tuple[str, int], ...]
    """(name, bytes per second), in the order of `LIMITS`."""

    def holds(self, weekday: int, minute: int) -> bool:
        """Whether it holds in that minute of that day."""
        if self.begin < self.end:
            return weekday in self.days and self.begin <= minute < self.end
        evening = weekday in self.days and minute >= self.begin
        return evening or ((weekday - 1) % 7 in self.days and minute < self.end)


def limits_at(
    base: Mapping[str, int], schedule: Iterable[ScheduleEntry], weekday: int, minute: int
) -> dict[str, int]:
    """The limits that hold in a minute: `base`, and what entries say, the last one winning."""
    limits = dict(base)
    for entry in schedule:
        if entry.holds(weekday, minute):
            limits.update(entry.limits)
    return limits


def parse_entry(text: str) -> ScheduleEntry:
    """The entry that `text` says.

    Raises:
        ValueError: the text says what is wrong with it.
    """
    words = text.lower().split() if len(text) <= _MAX_CHARS else []
    days = frozenset(range(7))
    if words and not _HOURS.fullmatch(words[0]):
        days = _days(words.pop(0))
    if not words or not (match := _HOURS.fullmatch(words[0])):
        raise ValueError("hours such as 08:00-18:00 must come first, or after the days")
    begin, end = _minute(match[1], match[2]), _minute(match[3], match[4])
    if begin == _DAY_MINUTES:
        raise ValueError("24:00 is an end, not a beginning")
    found: dict[str, int] = {}
    for word in words[1:]:
        name, rate = _limit(word)
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = rate
    if not found:
        raise ValueError(f"it sets no limit; {' or '.join(f'{name}=...' for name in LIMITS[:2])}")
    limits = tuple((name, found[name]) for name in LIMITS if name in found)
    return ScheduleEntry(days, begin, end, limits)


def format_entry(entry: ScheduleEntry) -> str:
    """Text that `parse_entry` reads back."""
    days = ",".join(DAYS[day] for day in sorted(entry.days)) + " " if len(entry.days) < 7 else ""
    hours = "-".join(f"{m // 60:02}:{m % 60:02}" for m in (entry.begin, entry.end))
    rates = (f"{n}={format_rate(r).replace(' ', '') if r else 0}" for n, r in entry.limits)
    return f"{days}{hours} {' '.join(rates)}"


def _days(word: str) -> frozenset[int]:
    days: set[int] = set()
    for part in word.split(","):
        first, dash, last = part.partition("-")
        begin, end = _day(first), _day(last if dash else first)
        days.update((begin + i) % 7 for i in range((end - begin) % 7 + 1))
    return frozenset(days)


def _day(word: str) -> int:
    if word not in DAYS:
        raise ValueError(f"{word[:20]!r} is no day ({', '.join(DAYS)}) and no hours (08:00-18:00)")
    return DAYS.index(word)


def _minute(hours: str, minutes: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > _DAY_MINUTES:
        raise ValueError(f"{hours}:{minutes} is no time of day")
    return minute


def _limit(word: str) -> tuple[str, int]:
    name, equals, value = word.partition("=")
    if not equals or name not in LIMITS:
        raise ValueError(f"{word[:40]!r} is no limit; {', '.join(LIMITS)}, such as upload=1MB/s")
    rate = parse_rate(value)
    if rate and not LEAST_RATE <= rate <= MOST_RATE:
        bounds = f"0 or {format_size(LEAST_RATE)}/s to {format_size(MOST_RATE)}/s"
        raise ValueError(f"{name} must be {bounds}")
    return name, rate
