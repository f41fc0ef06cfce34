"""`make bench-dht`: the DHT over real processes, and against the stock `KadDHT` in the same run.

First a testnet of 20 whole nodes: 1,024 chunk records announced and found, then again with 30 % of
the nodes killed and 15 % stopped. Then ten members of each kind: single records announced and found
one after the other and all at once, then with three of the ten stopped; CPU of all processes;
memory of 100,000 records. Read the ratios: both kinds had the same machine in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from meshnode.config import load_config
from meshnode.dht import Dht
from meshnode.node.assembly import open_parts
from rich.console import Console
from rich.table import Table

from scripts.testnet import Testnet, TestnetNode, open_testnet

from .dht_kinds import KINDS, open_client, quiet
from .measure import cpu_seconds

CHUNKS = 1024
_OPERATION_LIMIT = 60.0
_SETTLES_WITHIN = 60.0
_SETTLED = 0.2
"""Share of a core that all nodes together may use by themselves when the measurement begins."""
_SAMPLE = 3.0


@dataclass(frozen=True)
class Batches:
    """One line about the testnet: milliseconds for 1,024 records in one call.

    `cpu_ms`: of all processes that are up, for one call, with what they do by themselves meanwhile.
    """

    what: str
    times: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    cpu_ms: float
    success: float


@dataclass(frozen=True)
class Singles:
    """One line about one kind: records announced or found one by one, or all at once."""

    kind: str
    what: str
    operations: int
    per_second: float
    p50_ms: float
    p95_ms: float
    cpu_ms_each: float
    success: float


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _digests(rng: random.Random, count: int = CHUNKS) -> list[bytes]:
    return [rng.randbytes(32) for _ in range(count)]


# --- a testnet of whole nodes ---------------------------------------------------------------------


async def _wait_for_map(dht: Dht, members: int) -> None:
    with trio.fail_after(_SETTLES_WITHIN):
        # Another process is waited for: there is nothing to be woken by.
        while not (dht.stats()["full_map"] and dht.stats()["members"] >= members):  # noqa: ASYNC110
            await trio.sleep(0.1)


async def _settle(mesh: Testnet) -> float:
    """Wait until nodes that have just started are done with it; the share of a core they use."""
    pids = [node.pid for node in mesh.nodes if node.pid is not None]
    until = trio.current_time() + _SETTLES_WITHIN
    while True:
        cpu, began = _cpu(pids), trio.current_time()
        await trio.sleep(_SAMPLE)
        used = (_cpu(pids) - cpu) / (trio.current_time() - began)
        if used < _SETTLED or trio.current_time() > until:
            return used


async def _timed(call: Callable[[], Awaitable[float]]) -> tuple[float, float]:
    """Milliseconds, and the success that `call` returns."""
    began = trio.current_time()
    success = await call()
    return 1000 * (trio.current_time() - began), success


async def _batches(
    what: str, mesh: Testnet, calls: Sequence[Callable[[], Awaitable[float]]]
) -> Batches:
    """Make `calls` one after the other."""
    pids = [node.pid for node in mesh.nodes if node.pid is not None]
    cpu = _cpu(pids)
    runs = [await _timed(call) for call in calls]
    took = [ms for ms, _ in runs]
    return Batches(
        what,
        len(runs),
        _quantile(took, 0.5),
        _quantile(took, 0.95),
        max(took),
        1000 * (_cpu(pids) - cpu) / len(runs),
        statistics.mean(success for _, success in runs),
    )


async def _measure_testnet(
    writer: Dht, reader: Dht, mesh: Testnet, times: int
) -> tuple[float, list[Batches]]:
    rng = random.Random(1)
    members = len(mesh.nodes) + 2
    for dht in (writer, reader):
        await _wait_for_map(dht, members)
    idle = await _settle(mesh)
    announced: list[list[bytes]] = []

    async def announce() -> float:
        batch = _digests(rng)
        announced.append(batch)
        report = await writer.announce([(digest, 1 << 20) for digest in batch])
        return sum(count >= 3 for count in report.stored.values()) / len(batch)

    async def find(batch: list[bytes]) -> float:
        found = await reader.find_chunks(batch)
        return sum(bool(holders) for holders in found.values()) / len(batch)

    def finds(batches: Sequence[list[bytes]]) -> list[Callable[[], Awaitable[float]]]:
        return [lambda b=batch: find(b) for batch in batches]

    lines = [await _batches("announce, all up", mesh, [announce] * times)]
    lines.append(await _batches("find, all up", mesh, finds(announced)))
    killed, stopped = round(0.30 * len(mesh.nodes)), round(0.15 * len(mesh.nodes))
    victims = random.Random(2).sample(mesh.nodes, killed + stopped)
    for node in victims[:killed]:
        node.kill()
    for node in victims[killed:]:
        node.signal(signal.SIGSTOP)
    what = f"{killed} killed, {stopped} stopped"
    lines.append(await _batches(f"find, {what}", mesh, finds(announced)))
    lines.append(await _batches(f"announce, {what}", mesh, [announce] * times))
    lines.append(await _batches(f"find those, {what}", mesh, finds(announced[times:])))
    return idle, lines


def measure_testnet(nodes: int, times: int) -> tuple[float, list[Batches]]:
    """`nodes` whole nodes in processes of their own, and two more in this one that are driven.

    The share of a core that all of them use while nobody asks anything, and the lines.
    """
    with (
        open_testnet(nodes) as mesh,
        tempfile.TemporaryDirectory(prefix="meshnode-bench-") as scratch,
    ):
        token = json.loads(mesh[1].must("--json", "invite"))["token"]
        homes = [Path(scratch) / name for name in ("writer", "reader")]
        for number, home in enumerate(homes):
            client = TestnetNode(1000 + number, home, mesh[1].config)
            client.must("join", token)
            client.configure()

        async def drive() -> tuple[float, list[Batches]]:
            async with AsyncExitStack() as stack:
                parts = [
                    await stack.enter_async_context(
                        open_parts(load_config(home, env={}), serve_peers=True)
                    )
                    for home in homes
                ]
                return await _measure_testnet(parts[0].dht, parts[1].dht, mesh, times)

        return trio.run(drive)


# --- both kinds -----------------------------------------------------------------------------------


@contextmanager
def _member(kind: str, join: str | None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, "-m", "tests.bench.dht_kinds", kind]
    if join is not None:
        command.append(join)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().decode().strip()
        finally:
            process.kill()


async def _measure_kind(kind: str, peers: int, operations: int, frozen: int) -> list[Singles]:
    rng = random.Random(3)
    lines: list[Singles] = []
    async with AsyncExitStack() as stack:
        first, address = stack.enter_context(_member(kind, None))
        processes = [first]
        for _ in range(peers - 1):
            processes.append(stack.enter_context(_member(kind, address))[0])
        writer = await stack.enter_async_context(open_client(kind, address))
        reader = await stack.enter_async_context(open_client(kind, address))
        await trio.sleep(5)
        pids = [process.pid for process in processes]

        async def run(what: str, calls: list[Callable[[], Awaitable[bool]]], at_once: bool) -> None:
            took: list[float] = []
            good: list[bool] = []

            async def one(call: Callable[[], Awaitable[bool]]) -> None:
                began, result = trio.current_time(), False
                with trio.move_on_after(_OPERATION_LIMIT):
                    result = await call()
                took.append(1000 * (trio.current_time() - began))
                good.append(result)

            cpu, began = _cpu(pids), time.perf_counter()
            if at_once:
                async with trio.open_nursery() as nursery:
                    for call in calls:
                        nursery.start_soon(one, call)
            else:
                for call in calls:
                    await one(call)
            seconds = time.perf_counter() - began
            lines.append(
                Singles(
                    kind,
                    what,
                    len(calls),
                    len(calls) / seconds,
                    _quantile(took, 0.5),
                    _quantile(took, 0.95),
                    1000 * (_cpu(pids) - cpu) / len(calls),
                    sum(good) / len(good),
                )
            )

        def providing(digests: list[bytes]) -> list[Callable[[], Awaitable[bool]]]:
            async def provide(digest: bytes) -> bool:
                await writer.provide(digest)
                return True

            return [lambda d=digest: provide(d) for digest in digests]

        def finding(digests: list[bytes]) -> list[Callable[[], Awaitable[bool]]]:
            return [lambda d=digest: reader.find(d) for digest in digests]

        one_by_one, together = _digests(rng, operations), _digests(rng, operations)
        await run("announce, one by one", providing(one_by_one), False)
        await run("announce, at once", providing(together), True)
        await run("find, one by one", finding(one_by_one), False)
        await run("find, at once", finding(together), True)
        for process in processes[-frozen:]:
            process.send_signal(signal.SIGSTOP)
        few = _digests(rng, 3)
        await run(f"announce, {frozen} of {peers} stopped", providing(few), False)
        await run(f"find, {frozen} of {peers} stopped", finding(few), False)
    return lines


def _cpu(pids: list[int]) -> float:
    """Of all members and of the clients in this process."""
    return time.process_time() + sum(cpu_seconds(pid) for pid in pids)


def measure_memory(kind: str, records: int) -> float:
    """MiB for `records` records."""
    command = [sys.executable, "-m", "tests.bench.dht_kinds", kind, "--records", str(records)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / (1 << 20)


# --- what is printed ------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="measure the DHT over real processes")
    parser.add_argument("--nodes", type=int, default=20, help="of the testnet; 0: leave it out")
    parser.add_argument("--times", type=int, default=20, help="batches of 1,024 records")
    parser.add_argument("--peers", type=int, default=10, help="members of each kind; 0: none")
    parser.add_argument("--operations", type=int, default=20, help="single records")
    parser.add_argument("--records", type=int, default=100_000, help="for the memory of a record")
    parser.add_argument("--json", type=Path, default=Path("bench-results/dht.json"))
    options = parser.parse_args()
    quiet()
    idle, batches = measure_testnet(options.nodes, options.times) if options.nodes else (0.0, [])
    if batches:
        _print_batches(batches, options.nodes)
        print(
            f"all nodes by themselves, when nobody asks anything: {1000 * idle:.0f} CPU ms a second"
        )
    singles: list[Singles] = []
    memory: dict[str, float] = {}
    if options.peers:
        frozen = max(1, round(0.3 * options.peers))
        for kind in KINDS:
            singles += trio.run(_measure_kind, kind, options.peers, options.operations, frozen)
        memory = {kind: measure_memory(kind, options.records) for kind in KINDS}
        _print_singles(singles, memory, options.records)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": {"cores": os.cpu_count(), "python": sys.version},
        "idle_cpu_share": idle,
        "testnet": [asdict(line) for line in batches],
        "singles": [asdict(line) for line in singles],
        "memory_mib": {"records": options.records, **memory},
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {options.json}")
    return 0


def _print_batches(lines: list[Batches], nodes: int) -> None:
    table = Table(title=f"{nodes} nodes in processes of their own: {CHUNKS} records in one call")
    for title in ("what", "times", "p50 ms", "p95 ms", "max ms", "CPU ms", "success"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for line in lines:
        took = [f"{ms:.0f}" for ms in (line.p50_ms, line.p95_ms, line.max_ms, line.cpu_ms)]
        table.add_row(line.what, str(line.times), *took, f"{line.success:.4f}")
    Console(width=120).print(table)


def _print_singles(lines: list[Singles], memory: dict[str, float], records: int) -> None:
    table = Table(title="single records, and the same with py-libp2p's KadDHT")
    titles = ("what", "kind", "n", "per s", "ratio", "p50 ms", "p95 ms", "CPU ms", "success")
    for title in titles:
        table.add_column(title, justify="left" if title in ("what", "kind") else "right")
    stock = {line.what: line for line in lines if line.kind == "py-libp2p"}
    for line in sorted(lines, key=lambda line: [*stock].index(line.what)):
        table.add_row(
            line.what,
            line.kind,
            str(line.operations),
            f"{line.per_second:.1f}",
            f"{line.per_second / stock[line.what].per_second:.1f}",
            f"{line.p50_ms:.1f}",
            f"{line.p95_ms:.1f}",
            f"{line.cpu_ms_each:.1f}",
            f"{line.success:.2f}",
        )
    Console(width=120).print(table)
    ours, theirs = memory["meshnode"], memory["py-libp2p"]
    print(
        f"memory of {records} records: meshnode {ours:.0f} MiB, py-libp2p {theirs:.0f} MiB,"
        f" ratio {ours / theirs:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
