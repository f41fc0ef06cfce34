"""`make bench-transport`: the transport against stock py-libp2p and against plain TCP, in one run.

One way through one or more connections between two processes on loopback, small requests on kept
streams, and streams that are opened, used once and closed. Plain TCP is neither encrypted nor
multiplexed (a stream is a connection there): it says what the machine can do under trio. Read the
ratios; the machine is never quiet.
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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from .measure import MIB, cpu_seconds
from .transport_peers import DIALLING, DRAIN, PING, PING_BYTES, POOLED, OpenPipe, Pipe

GIB = 1 << 30
OURS, STOCK, RAW = KINDS = tuple(DIALLING)
SHAPES = tuple(product((64 * 1024, 256 * 1024, MIB), (1, 8), (1, 4)))
"""Write size, streams a connection, connections."""
SLOWER = 8
"""The stock library moves this part of the bytes, or nobody would wait for it."""


@dataclass(frozen=True)
class Served:
    """A serving process."""

    pid: int
    where: str


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


@dataclass(frozen=True)
class Cycles:
    """Streams opened, used for one request and closed, one after the other."""

    kind: str
    per_s: float


@contextmanager
def _serving(kind: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "tests.bench.transport_peers", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Served(process.pid, process.stdout.readline().decode().strip())
        finally:
            process.stdin.close()


async def _send(pipe: Pipe, data: bytes, times: int) -> None:
    for _ in range(times):
        await pipe.write(data)
    await pipe.end()
    if await pipe.read(1) != b".":
        raise RuntimeError("the other end did not say that it has everything")


async def _throughput(
    kind: str, served: Served, shape: tuple[int, int, int], total: int
) -> Throughput:
    write_bytes, streams, connections = shape
    if kind == STOCK:
        total //= SLOWER
    times = max(total // (write_bytes * streams * connections), 1)
    data = os.urandom(write_bytes)
    moved = times * write_bytes * streams * connections
    async with DIALLING[kind](served.where, connections) as open_pipe:
        pipes = [await open_pipe(n, DRAIN) for n in range(connections) for _ in range(streams)]
        ours, theirs = time.process_time(), cpu_seconds(served.pid)
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for pipe in pipes:
                nursery.start_soon(_send, pipe, data, times)
        seconds = time.perf_counter() - began
        ours, theirs = time.process_time() - ours, cpu_seconds(served.pid) - theirs
    return Throughput(kind, *shape, moved / seconds / 1e6, ours / moved * GIB, theirs / moved * GIB)


async def _ask(pipe: Pipe, payload: bytes) -> None:
    await pipe.write(payload)
    left = len(payload)
    while left:
        left -= len(await pipe.read(left))


async def _latency(
    kind: str, served: Served, in_flight: int, requests: int, *, pooled: bool = False
) -> Latency:
    took: list[float] = []
    payload = bytes(PING_BYTES)

    async def ask(open_pipe: OpenPipe) -> None:
        pipe = await open_pipe(0, PING)
        await _ask(pipe, payload)
        for _ in range(requests // in_flight):
            began = time.perf_counter()
            await _ask(pipe, payload)
            took.append(time.perf_counter() - began)
        await pipe.end()

    async with (POOLED if pooled else DIALLING[kind])(served.where, 1) as open_pipe:
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(ask, open_pipe)
        seconds = time.perf_counter() - began
    cuts = statistics.quantiles(took, n=100)
    name = f"{kind}, pool" if pooled else kind
    return Latency(name, in_flight, cuts[49] * 1e3, cuts[98] * 1e3, len(took) / seconds)


async def _cycles(kind: str, served: Served, count: int) -> Cycles:
    async with DIALLING[kind](served.where, 1) as open_pipe:
        began = time.perf_counter()
        for _ in range(count):
            pipe = await open_pipe(0, PING)
            await _ask(pipe, bytes(PING_BYTES))
            await pipe.end()
        return Cycles(kind, count / (time.perf_counter() - began))


def _measure_throughput(
    serving: dict[str, Served], total: int, times: int
) -> Iterator[list[Throughput]]:
    """Shape by shape, the median run of each kind: one number of a machine that is never quiet."""
    # Kinds take turns within a shape, so that a busy moment of the machine hits all of them.
    for shape in SHAPES:
        runs: dict[str, list[Throughput]] = {kind: [] for kind in serving}
        for _ in range(times):
            for kind, served in serving.items():
                runs[kind].append(trio.run(_throughput, kind, served, shape, total))
        yield [sorted(of, key=lambda run: run.mb_per_s)[times // 2] for of in runs.values()]


def _ratio(rows: list[Throughput], kind: str, other: str) -> float | None:
    """How many times as fast as `other`; None when one was not measured."""
    speeds = {row.kind: row.mb_per_s for row in rows}
    return speeds[kind] / speeds[other] if kind in speeds and other in speeds else None


def _throughput_table(shapes: list[list[Throughput]]) -> Table:
    table = Table("write", "streams", "conns", title="One way; CPU: s/GiB of sender/receiver")
    kinds = [row.kind for row in shapes[0]]
    for kind in kinds:
        table.add_column(f"{kind} MB/s", justify="right")
        table.add_column("CPU", justify="right")
    for name in ("x stock", "of TCP"):
        table.add_column(name, justify="right")
    for rows in shapes:
        first = rows[0]
        cells = [f"{first.write_bytes // 1024} KiB", str(first.streams), str(first.connections)]
        for row in rows:
            cpu = f"{row.sender_cpu_s_per_gib:.2f}/{row.receiver_cpu_s_per_gib:.2f}"
            cells += [f"{row.mb_per_s:.0f}", cpu]
        against = [_ratio(rows, OURS, other) for other in (STOCK, RAW)]
        table.add_row(*cells, *("" if ratio is None else f"{ratio:.2f}" for ratio in against))
    return table


def _latency_table(latencies: list[Latency]) -> Table:
    table = Table("in flight", "kind", title=f"Requests of {PING_BYTES} bytes, kept streams")
    for name in ("p50 ms", "p99 ms", "requests/s"):
        table.add_column(name, justify="right")
    for late in latencies:
        table.add_row(
            str(late.in_flight),
            late.kind,
            f"{late.p50_ms:.3f}",
            f"{late.p99_ms:.3f}",
            f"{late.requests_per_s:.0f}",
        )
    return table


def _cycles_table(cycles: list[Cycles]) -> Table:
    table = Table("kind", title="Streams opened, used for one request, closed")
    table.add_column("a second", justify="right")
    for row in cycles:
        table.add_row(row.kind, f"{row.per_s:.0f}")
    return table


def _worst(shapes: list[list[Throughput]]) -> str:
    """What the ratios come to, in one line."""
    stock = [(_ratio(rows, OURS, STOCK), rows[0]) for rows in shapes]
    raw = [(_ratio(rows, OURS, RAW), rows[0]) for rows in shapes]
    least_raw = min((ratio for ratio, _ in raw if ratio is not None), default=None)
    least_stock = min(
        (ratio for ratio, row in stock if ratio is not None and row.write_bytes == MIB),
        default=None,
    )
    if least_raw is None or least_stock is None:
        return "no ratios: not all kinds were measured"
    return (
        f"at least {least_stock:.1f} times the stock stack at 1 MiB, "
        f"at least {least_raw:.2f} of plain TCP in every shape"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=128, help="MiB moved in each run")
    parser.add_argument("--times", type=int, default=3, help="runs of each row; the median counts")
    parser.add_argument("--requests", type=int, default=4000, help="of each latency row")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this (repeatable)")
    parser.add_argument("--json", type=Path, default=Path("bench-results/transport.json"))
    options = parser.parse_args()
    kinds = options.kind or KINDS
    with ExitStack() as stack:
        serving = {kind: stack.enter_context(_serving(kind)) for kind in kinds}
        latencies = []
        for in_flight in (1, 64):
            for kind, served in serving.items():
                requests = options.requests // (SLOWER if kind == STOCK and in_flight > 1 else 1)
                latencies.append(trio.run(_latency, kind, served, in_flight, requests))
            if OURS in serving:
                pooled = partial(_latency, pooled=True)
                latencies.append(trio.run(pooled, OURS, serving[OURS], in_flight, options.requests))
        cycles = [
            trio.run(_cycles, kind, served, options.requests // (SLOWER if kind == STOCK else 2))
            for kind, served in serving.items()
        ]
        shapes = list(_measure_throughput(serving, options.mib * MIB, options.times))
    console = Console(width=130)
    console.print(_throughput_table(shapes), _worst(shapes))
    console.print(_latency_table(latencies), _cycles_table(cycles))
    report = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "mib_per_run": options.mib,
        "throughput": [asdict(row) for rows in shapes for row in rows],
        "latency": [asdict(row) for row in latencies],
        "cycles": [asdict(row) for row in cycles],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
