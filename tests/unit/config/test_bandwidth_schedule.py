"""Timetables of bandwidth limits: what an entry says, when it holds, and what is no entry."""

from __future__ import annotations

import json

import pytest
from meshnode.config import limits_at, load_config, parse_entry, set_value
from meshnode.config.schedule import format_entry
from meshnode.errors import ConfigError

MON, TUE, SAT, SUN = 0, 1, 5, 6


def _minute(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


@pytest.mark.parametrize(
    ("entry", "day", "time", "holds"),
    [
        ("08:00-18:00 upload=1MB/s", SUN, "08:00", True),
        ("08:00-18:00 upload=1MB/s", SUN, "17:59", True),
        ("08:00-18:00 upload=1MB/s", SUN, "18:00", False),
        ("mon-fri 08:00-18:00 upload=1MB/s", SAT, "12:00", False),
        ("sat,sun 00:00-24:00 upload=1MB/s", SUN, "23:59", True),
        ("sat 22:00-06:00 upload=1MB/s", SAT, "23:00", True),
        ("sat 22:00-06:00 upload=1MB/s", SUN, "05:59", True),
        ("sat 22:00-06:00 upload=1MB/s", SAT, "05:59", False),
        ("sun 22:00-06:00 upload=1MB/s", MON, "01:00", True),
        ("sat-mon 10:00-11:00 upload=1MB/s", MON, "10:30", True),
        ("sat-mon 10:00-11:00 upload=1MB/s", TUE, "10:30", False),
        ("00:00-00:00 upload=1MB/s", TUE, "13:00", True),
    ],
)
def test_an_entry_holds_on_its_days_between_its_times(entry, day, time, holds):
    assert parse_entry(entry).holds(day, _minute(time)) is holds


def test_the_last_entry_that_holds_wins_and_what_it_does_not_name_stays():
    base = {"upload": 0, "download": 9_000_000}
    schedule = [
        parse_entry("08:00-18:00 upload=1MB/s download=5MB/s"),
        parse_entry("mon 12:00-13:00 upload=0"),
    ]
    assert limits_at(base, schedule, MON, _minute("07:00")) == base
    assert limits_at(base, schedule, MON, _minute("09:00")) == {
        "upload": 1_000_000,
        "download": 5_000_000,
    }
    assert limits_at(base, schedule, MON, _minute("12:30")) == {
        "upload": 0,
        "download": 5_000_000,
    }


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("", "hours such as"),
        ("8-18 upload=1MB/s", "no day"),
        ("monday 08:00-18:00 upload=1MB/s", "no day"),
        ("mon upload=1MB/s", "hours such as"),
        ("08:00-18:00", "sets no limit"),
        ("08:00-25:00 upload=1MB/s", "no time of day"),
        ("08:60-09:00 upload=1MB/s", "no time of day"),
        ("24:00-09:00 upload=1MB/s", "not a beginning"),
        ("08:00-18:00 speed=1MB/s", "no limit"),
        ("08:00-18:00 upload 1MB/s", "no limit"),
        ("08:00-18:00 upload=fast", "not a size"),
        ("08:00-18:00 upload=1KB/s", "64 KiB/s"),
        ("08:00-18:00 upload=1MB/s upload=2MB/s", "twice"),
        ("08:00-18:00 " + "upload=1MB/s " * 100, "hours such as"),
    ],
)
def test_what_is_no_entry_is_told_why(entry, told):
    with pytest.raises(ValueError, match=told):
        parse_entry(entry)


@pytest.mark.parametrize(
    "entry",
    ["08:00-18:00 upload=1MB/s", "mon,fri 22:00-06:00 download=0 per_peer_upload=1MB/s"],
)
def test_an_entry_is_written_as_it_is_read(entry):
    assert format_entry(parse_entry(entry)) == entry


def test_rates_and_timetables_are_read_from_file_and_environment(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[performance.bandwidth]\nupload = "10MB/s"\n'
        'schedule = ["Mon-Fri 08:00-18:00 upload=1MB/s"]\n'
    )
    variable = "MESHNODE_PERFORMANCE_BANDWIDTH_PER_PEER_DOWNLOAD"
    config = load_config(tmp_path, env={variable: "2 MiB/s"})
    bandwidth = config.performance.bandwidth
    assert (bandwidth.upload, bandwidth.per_peer_download) == (10_000_000, 2 * 1024 * 1024)
    assert bandwidth.schedule == ("mon,tue,wed,thu,fri 08:00-18:00 upload=1MB/s",)
    json.dumps(bandwidth.schedule)


def test_a_timetable_can_be_set_from_the_command_line(tmp_path):
    path = tmp_path / "config.toml"
    key = "performance.bandwidth.schedule"
    set_value(path, key, "sat,sun 00:00-24:00 upload=0; 08:00-18:00 upload=1MB/s")
    assert len(load_config(tmp_path, env={}).performance.bandwidth.schedule) == 2
    with pytest.raises(ConfigError, match="no day"):
        set_value(path, key, "someday 00:00-24:00 upload=0")
    with pytest.raises(ConfigError, match="64 KiB/s"):
        set_value(path, "performance.bandwidth.upload", "10 KB/s")
