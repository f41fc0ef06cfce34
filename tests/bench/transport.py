"""`make bench-transport`: the transport against stock py-libp2p and against plain TCP, in one run.

One way through one or more connections between two processes on loopback, and small requests on
kept streams. Plain TCP is neither encrypted nor multiplexed (a stream is a connection there): it
says what the machine can do under trio. Read the ratios; the machine is never quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from .measure import MIB, cpu_seconds
from .transport_peers import DIALLING, DRAIN, PING, PING_BYTES, OpenPipe, Pipe

GIB = 1 << 30
KINDS = tuple(DIALLING)
SHAPES = (  # write size, streams a connection, connections
    (64 * 1024, 1, 1),
    (256 * 1024, 1, 1),
    (MIB, 1, 1),
    (MIB, 8, 1),
    (MIB, 1, 4),
)


@dataclass(frozen=True)
class Throughput:
    kind: str
    write_bytes: int
    streams: int
    connections: int
    mb_per_s: float
    sender_cpu_s_per_gib: float
    receiver_cpu_s_per_gib: float


@dataclass(frozen=True)
class Latency:
    kind: str
    in_flight: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float


@contextmanager
def _serving(kind: str) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "tests.bench.transport_peers", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()


async def _send(pipe: Pipe, data: bytes, times: int) -> None:
    for _ in range(times):
        await pipe.write(data)
    await pipe.end()
    if await pipe.read(1) != b".":
        raise RuntimeError("the other end did not say that it has everything")


async def _throughput(kind: str, shape: tuple[int, int, int], total: int) -> Throughput:
    write_bytes, streams, connections = shape
    times = max(total // (write_bytes * streams * connections), 1)
    data = os.urandom(write_bytes)
    moved = times * write_bytes * streams * connections
    with _serving(kind) as (pid, where):
        async with DIALLING[kind](where, connections) as open_pipe:
            pipes = [await open_pipe(n, DRAIN) for n in range(connections) for _ in range(streams)]
            ours, theirs = time.process_time(), cpu_seconds(pid)
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for pipe in pipes:
                    nursery.start_soon(_send, pipe, data, times)
            seconds = time.perf_counter() - began
            ours, theirs = time.process_time() - ours, cpu_seconds(pid) - theirs
    return Throughput(kind, *shape, moved / seconds / 1e6, ours / moved * GIB, theirs / moved * GIB)


async def _latency(kind: str, in_flight: int, requests: int) -> Latency:
    took: list[float] = []

    async def ask(open_pipe: OpenPipe) -> None:
        pipe = await open_pipe(0, PING)
        payload = bytes(PING_BYTES)
        for _ in range(requests // in_flight):
            began = time.perf_counter()
            await pipe.write(payload)
            left = PING_BYTES
            while left:
                left -= len(await pipe.read(left))
            took.append(time.perf_counter() - began)
        await pipe.end()

    with _serving(kind) as (_, where):
        async with DIALLING[kind](where, 1) as open_pipe:
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(in_flight):
                    nursery.start_soon(ask, open_pipe)
            seconds = time.perf_counter() - began
    cuts = statistics.quantiles(took, n=100)
    return Latency(kind, in_flight, cuts[49] * 1e3, cuts[98] * 1e3, len(took) / seconds)


def _best(runs: list[Throughput]) -> Throughput:
    """The median run: one number of a machine that is never quiet."""
    return sorted(runs, key=lambda run: run.mb_per_s)[len(runs) // 2]


def _tables(throughputs: list[Throughput], latencies: list[Latency]) -> list[Table]:
    moved = Table("write", "streams", "conns", "kind", title="One way, 1 MB = 10^6 bytes")
    for name in ("MB/s", "sender CPU s/GiB", "receiver CPU s/GiB"):
        moved.add_column(name, justify="right")
    for row in throughputs:
        moved.add_row(
            f"{row.write_bytes // 1024} KiB",
            str(row.streams),
            str(row.connections),
            row.kind,
            f"{row.mb_per_s:.0f}",
            f"{row.sender_cpu_s_per_gib:.2f}",
            f"{row.receiver_cpu_s_per_gib:.2f}",
        )
    asked = Table("in flight", "kind", title=f"Requests of {PING_BYTES} bytes, kept streams")
    for name in ("p50 ms", "p99 ms", "requests/s"):
        asked.add_column(name, justify="right")
    for late in latencies:
        asked.add_row(
            str(late.in_flight),
            late.kind,
            f"{late.p50_ms:.3f}",
            f"{late.p99_ms:.3f}",
            f"{late.requests_per_s:.0f}",
        )
    return [moved, asked]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="MiB moved in each run")
    parser.add_argument("--times", type=int, default=3, help="runs of each row; the median counts")
    parser.add_argument("--requests", type=int, default=3000, help="of each latency row")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this (repeatable)")
    parser.add_argument("--json", type=Path, default=Path("bench-results/transport.json"))
    options = parser.parse_args()
    kinds = options.kind or KINDS
    # Kinds take turns within a shape, so that a busy moment of the machine hits all of them.
    throughputs = []
    for shape in SHAPES:
        runs: dict[str, list[Throughput]] = {kind: [] for kind in kinds}
        for _ in range(options.times):
            for kind in kinds:
                runs[kind].append(trio.run(_throughput, kind, shape, options.mib * MIB))
        throughputs += [_best(runs[kind]) for kind in kinds]
    latencies = [
        trio.run(_latency, kind, in_flight, options.requests)
        for in_flight in (1, 64)
        for kind in kinds
    ]
    console = Console()
    for table in _tables(throughputs, latencies):
        console.print(table)
    report = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "mib_per_run": options.mib,
        "throughput": [asdict(row) for row in throughputs],
        "latency": [asdict(row) for row in latencies],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
