"""`make sim`: the DHT's code in simulated meshes of 10 to 10,000 nodes; tables and JSON.

Every run is a process of its own with its own seed, two at a time. What a seed decides is the whole
run: `python -m tests.simulation.dht_report --only basics-1000 --seed 4` repeats one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import trio
from meshnode.dht import DhtSettings

from .lab.churn import exponential, lognormal, measure_churn
from .lab.clock import run_simulation
from .lab.eclipse import measure_eclipse
from .lab.faults import measure_loss, measure_partition
from .lab.lookups import measure_announcing, measure_lookups
from .lab.markdown import write_docs
from .lab.mesh import Lab, open_lab
from .lab.tables import Row, as_row, print_rows, write_json

ITERATIVE = DhtSettings(map_members=0)
FULL_MAP = DhtSettings()
CALM = DhtSettings(map_members=0, liveness=3600.0, refresh=4 * 3600.0)
CALM_MAP = DhtSettings(map_round=120.0, liveness=1200.0, refresh=4 * 3600.0)
"""A quarter of the usual upkeep and less: harder on the mesh, and easier on the simulator."""

Work = Callable[[int], Awaitable[dict[str, Row]]]
"""From a seed to rows by the name of their table."""


@dataclass(frozen=True, slots=True)
class Run:
    name: str
    seed: int
    work: Work


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _up(lab: Lab, nodes: int, start: str = "settled") -> None:
    if start == "cold":
        await lab.join(nodes)
    elif start == "warm":
        await lab.warm_start([lab.add() for _ in range(nodes)])
    else:
        await lab.settle([lab.add() for _ in range(nodes)])
    # Tables are given to a settled mesh, maps are not.
    await trio.sleep(1 if start == "settled" and not lab.settings.map_members else 60)
    _say(f"{nodes} nodes are up")


def _mode(settings: DhtSettings) -> str:
    return "map" if settings.map_members else "iterative"


def _basics(nodes: int, settings: DhtSettings, start: str) -> Work:
    async def work(seed: int) -> dict[str, Row]:
        before = _resident_mib()
        async with open_lab(seed, settings) as lab:
            await _up(lab, nodes, start)
            joined = lab.totals()
            mode = _mode(settings)
            lookups = await measure_lookups(lab, 100)
            announcing = await measure_announcing(lab)
            return {
                "start": {
                    "seed": seed,
                    "mode": mode,
                    "nodes": nodes,
                    "start": start,
                    "messages_per_node": joined["rpcs_sent"] / nodes,
                    "kib_per_node": joined["bytes"] / 1024 / nodes,
                    "table_peers": joined["table_peers"] / nodes,
                    "lab_kib_per_node": (_resident_mib() - before) * 1024 / nodes,
                },
                "lookups": as_row(seed, lookups, mode=mode),
                "announcing": as_row(seed, announcing, mode=mode),
            }

    return work


def _loss(nodes: int, settings: DhtSettings) -> Work:
    async def work(seed: int) -> dict[str, Row]:
        async with open_lab(seed, settings) as lab:
            await _up(lab, nodes)
            return {"loss": as_row(seed, await measure_loss(lab), mode=_mode(settings))}

    return work


def _partition(nodes: int, settings: DhtSettings) -> Work:
    async def work(seed: int) -> dict[str, Row]:
        async with open_lab(seed, settings) as lab:
            await _up(lab, nodes)
            return {"partition": as_row(seed, await measure_partition(lab), mode=_mode(settings))}

    return work


def _eclipse(nodes: int, settings: DhtSettings, tries: int, *, subtle: bool = False) -> Work:
    async def work(seed: int) -> dict[str, Row]:
        async with open_lab(seed, settings) as lab:
            bad = nodes // 5
            found = await measure_eclipse(lab, nodes - bad, bad, tries, subtle=subtle)
            return {"eclipse": as_row(seed, found, mode=_mode(settings))}

    return work


def _churn(nodes: int, settings: DhtSettings, hours: float, shape: str) -> Work:
    async def work(seed: int) -> dict[str, Row]:
        async with open_lab(seed, settings) as lab:
            await _up(lab, nodes)
            sessions, mean = exponential(lab, 3600.0), None
            if shape == "lognormal":
                sessions, mean = lognormal(lab, 3600.0, 1.0), 3600.0 * 1.6487
            found = await measure_churn(lab, sessions, hours=hours, mean=mean, progress=_say)
            upkeep = "calm" if settings.refresh > DhtSettings().refresh else "default"
            more = {"mode": _mode(settings), "upkeep": upkeep, "sessions": shape}
            return {"churn": as_row(seed, found, **more)}

    return work


RUNS = [
    # The long ones first, so that the short ones fill the gaps.
    Run("basics-1000-cold", 15, _basics(1000, ITERATIVE, "cold")),
    Run("churn-100", 42, _churn(100, CALM_MAP, 6.0, "exponential")),
    Run("partition-1000", 31, _partition(1000, CALM)),
    Run("churn-100-iterative", 43, _churn(100, CALM, 24.0, "exponential")),
    Run("basics-10000", 14, _basics(10_000, ITERATIVE, "settled")),
    Run("churn-100-lognormal", 44, _churn(100, CALM_MAP, 3.0, "lognormal")),
    Run("loss-1000", 21, _loss(1000, CALM)),
    Run("churn-300", 41, _churn(300, CALM, 3.0, "exponential")),
    Run("partition-100", 32, _partition(100, FULL_MAP)),
    Run("eclipse-1000-many-keys", 52, _eclipse(1000, ITERATIVE, 20_000)),
    Run("eclipse-1000", 51, _eclipse(1000, ITERATIVE, 1000)),
    Run("basics-1000", 13, _basics(1000, ITERATIVE, "warm")),
    Run("loss-100", 22, _loss(100, FULL_MAP)),
    Run("basics-100-map", 16, _basics(100, FULL_MAP, "cold")),
    Run("eclipse-300-subtle", 54, _eclipse(300, ITERATIVE, 300, subtle=True)),
    Run("basics-100", 12, _basics(100, ITERATIVE, "cold")),
    Run("eclipse-100", 53, _eclipse(100, FULL_MAP, 100)),
    Run("basics-10", 11, _basics(10, FULL_MAP, "cold")),
]

_started = time.monotonic()


def _say(line: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - _started:5.0f} s] {line}\n")
    sys.stderr.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="simulate meshes of up to 10,000 nodes")
    parser.add_argument("--only", default="*", metavar="NAME", help="these runs; wildcards work")
    parser.add_argument("--seed", type=int, help="instead of each run's own")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", type=Path, default=Path("bench-results/dht-sim.json"))
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the last figures there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (run,) = (run for run in RUNS if run.name == options.one)
        seed = run.seed if options.seed is None else options.seed
        result = run_simulation(seed, lambda: run.work(seed))
        # Of the processor: nobody else's work is in it.
        took = round(time.process_time())
        print(json.dumps({table: {**row, "took": took} for table, row in result.items()}))
        return 0
    if options.docs:
        write_docs(options.docs, json.loads(options.json.read_text()))
        return 0
    runs = [run for run in RUNS if fnmatch(run.name, options.only)]
    if not runs:
        parser.error(f"no run is called {options.only}; there are {[run.name for run in RUNS]}")
    tables: dict[str, list[Row]] = {}
    failed = []
    with ThreadPoolExecutor(options.at_once) as pool:
        under_way = {pool.submit(_in_process, run, options): run for run in runs}
        for done in as_completed(under_way):
            run, found = under_way[done], done.result()
            if found is None:
                failed.append(run.name)
            for table, row in (found or {}).items():
                tables.setdefault(table, []).append({"run": run.name, **row})
            # Whatever becomes of the others.
            write_json(options.json, tables)
    for title, rows in tables.items():
        rows.sort(key=lambda row: (row["nodes"], row["run"]))
        print_rows(title, rows)
    write_json(options.json, tables)
    print(f"\nwritten to {options.json}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _in_process(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """Memory that one run leaves behind must not slow the next one down."""
    seed = run.seed if options.seed is None else options.seed
    began = time.monotonic()
    _say(f"{run.name} (seed {seed}) begins")
    command = [sys.executable, "-m", __spec__.name, "--one", run.name, "--seed", str(seed)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    _say(f"{run.name} (seed {seed}) took {time.monotonic() - began:.0f} s")
    if done.returncode:
        return None
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
