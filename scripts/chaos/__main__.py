"""`make chaos`: puts and gets between real nodes whose lines are bad on purpose, as a table.

Every scenario checks what came of it: the right bytes, the right exit code, nothing half done, no
hang. One that went wrong makes the exit code 1. Times are told, and never judged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..testnet import TestnetError
from .lab import Lab, WrongOutcome, open_lab
from .scenarios import SCENARIOS, Figures, Kept, Scenario, Stage

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Played:
    scenario: Scenario
    figures: Figures | None
    """None when it went wrong."""
    wrong: str
    seconds: float
    """Of the whole scenario."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few scenarios, about a minute")
    parser.add_argument("--size", type=float, metavar="MIB", help="of a content (64; quick: 24)")
    parser.add_argument("--only", metavar="REGEX", help="scenarios whose names match")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    size = int((options.size or (24 if options.quick else 64)) * MIB)
    chosen = _choose(options.quick, options.only)
    if not chosen:
        parser.error("no scenario has such a name")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    load = os.getloadavg()[0]
    began = time.monotonic()
    try:
        with open_lab(size, options.seed) as lab:
            played = _play(lab, chosen)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (TestnetError, WrongOutcome) as error:
        print(f"error: the mesh did not come up: {error}", file=sys.stderr)
        return 1
    _print(played, size, load, time.monotonic() - began)
    if options.json is not None:
        _write(options.json, played, size, load)
    return int(any(entry.figures is None for entry in played))


def _choose(quick: bool, pattern: str | None) -> list[Scenario]:
    """Those that match, and the ones they are measured by."""
    chosen = {
        scenario.name
        for scenario in SCENARIOS
        if (scenario.quick or not quick) and re.search(pattern or "", scenario.name)
    }
    for scenario in reversed(SCENARIOS):
        if scenario.name in chosen and scenario.against:
            chosen.add(scenario.against)
    return [scenario for scenario in SCENARIOS if scenario.name in chosen]


def _play(lab: Lab, chosen: Sequence[Scenario]) -> list[Played]:
    single, replicated = lab.make_file(), lab.make_file()
    stage = Stage(
        Kept(single, lab.keep(single, 1)), Kept(replicated, lab.keep(replicated, len(lab.holders)))
    )
    played = []
    for scenario in chosen:
        played.append(_play_one(lab, stage, scenario))
        entry = played[-1]
        told = entry.wrong or "right"
        print(f"{scenario.name.strip()}: {told} ({entry.seconds:.1f} s in all)", flush=True)
    return played


def _play_one(lab: Lab, stage: Stage, scenario: Scenario) -> Played:
    began = time.monotonic()
    figures, wrong = None, ""
    try:
        figures = scenario.play(lab, stage)
    except (WrongOutcome, TestnetError) as error:
        wrong = str(error)
    try:
        lab.heal()
    except TestnetError as error:
        figures, wrong = None, f"{wrong}\na node did not come back: {error}".strip()
    return Played(scenario, figures, wrong, time.monotonic() - began)


def _print(played: Sequence[Played], size: int, load: float, seconds: float) -> None:
    title = f"{size / MIB:g} MiB, {os.cpu_count()} cores, load {load:.1f} before, {seconds:.0f} s"
    table = Table(title=title)
    words = ("scenario", "outcome", "remark")
    figures = ("seconds", "MB/s", "ratio", "twice", "retries", "hedges", "moved")
    for name in (*words[:2], *figures, words[2]):
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    by_name = {entry.scenario.name: entry.figures for entry in played}
    for entry in played:
        table.add_row(*_row(entry, by_name.get(entry.scenario.against)))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    wrong = [entry for entry in played if entry.figures is None]
    for entry in wrong:
        print(f"\nWRONG: {entry.scenario.name.strip()}: {entry.wrong}")
    print(f"\n{len(played) - len(wrong)} of {len(played)} as they must be.")


def _row(entry: Played, measure: Figures | None) -> list[str]:
    told = entry.figures
    if told is None:
        return [entry.scenario.name, "WRONG"]
    return [
        entry.scenario.name,
        "right",
        f"{told.seconds:.2f}",
        f"{told.size / told.seconds / 1e6:.1f}",
        "" if measure is None else f"{told.seconds / measure.seconds:.2f}",
        f"{told.wasted / told.size:.1%}",
        str(told.retries),
        str(told.hedges),
        str(told.moved),
        told.remark,
    ]


def _write(path: Path, played: Sequence[Played], size: int, load: float) -> None:
    rows = [
        {
            "scenario": entry.scenario.name.strip(),
            "against": entry.scenario.against.strip(),
            "wrong": entry.wrong,
            "figures": None if entry.figures is None else asdict(entry.figures),
        }
        for entry in played
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"size": size, "load": load, "scenarios": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
