"""`make sim-transfer`: gets over modelled links, as a table.

The real scheduler and its driver, with links of a given bandwidth and round trip, on virtual time:
the figures are the same on every machine. `ideal` is the time all bytes take at the rate of all
peers that stay, and a round trip.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table
from trio.testing import MockClock

from .modelled import Outcome, in_place, make_deterministic
from .scenarios import FAULTS, RATE, ideal_seconds, scenario

_COLUMNS = (
    "peers", "fault", "RTT", "seconds", "ideal", "MB/s", "twice", "asked", "hedges", "moved",
    "retries",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=256, help="of 1 MiB each")
    parser.add_argument("--concurrency", default="auto", help='a number, or "auto"')
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    most: int | str = options.concurrency
    if most != "auto":
        most = int(most)
    table = Table(title=f"{options.chunks} MiB, {most} in flight, {RATE / 1e6:g} MB/s per peer")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "fault" else "right")
    trio.to_thread.run_sync = in_place  # type: ignore[assignment]
    for peers in (1, 4, 16):
        for fault in FAULTS:
            for rtt in (0.001, 0.05, 0.2):
                if peers > 1 or not fault.needs_others:
                    outcome = _run(peers, fault.name, rtt, options.chunks, options.seed, most)
                    ideal = ideal_seconds(peers, fault.name, rtt, options.chunks)
                    table.add_row(*_row(peers, fault.name, rtt, outcome, ideal))
    Console(width=120).print(table)


def _run(peers: int, fault: str, rtt: float, chunks: int, seed: int, most: int | str) -> Outcome:
    make_deterministic(seed)
    with tempfile.TemporaryDirectory() as home:
        return trio.run(
            lambda: scenario(
                peers, fault, rtt, chunks, Path(home), seed=seed, max_concurrent_retrievals=most
            ),
            clock=MockClock(autojump_threshold=0),
        )


def _row(peers: int, fault: str, rtt: float, outcome: Outcome, ideal: float) -> list[str]:
    return [
        str(peers),
        fault,
        f"{rtt * 1000:g} ms",
        f"{outcome.seconds:.2f}",
        f"{ideal:.2f}",
        f"{outcome.wanted / outcome.seconds / 1e6:.1f}",
        f"{outcome.duplicates:.1%}",
        str(outcome.requests),
        str(outcome.hedges),
        str(outcome.moved),
        str(outcome.retries),
    ]


if __name__ == "__main__":
    main()
