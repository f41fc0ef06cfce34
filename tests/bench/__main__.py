"""`make bench`: meshnode against cp, HTTP and nginx with TLS on the same files in the same run.

One file put on node 1 and fetched by node 2 (two processes over loopback), fetched by a fifth node
from four, ten thousand small files, and one large file for the memory bound. nginx and curl are
measured where they are installed. Prints a table, writes JSON. The numbers
are this machine's at this moment: read the ratios, and the spread for how noisy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.testnet import Testnet, TestnetNode, open_testnet

from . import baselines
from .measure import Result, recycle_pages

GIB = 1 << 30
NGINX = "nginx -> curl"
NGINX_TLS = "nginx, TLS 1.3 -> curl"


def main() -> int:
    parser = argparse.ArgumentParser(description="measure meshnode against cp, HTTP, nginx")
    parser.add_argument("--size", type=float, default=1.0, help="GiB of the one file (default 1)")
    parser.add_argument("--files", type=int, default=10_000, help="how many small files")
    parser.add_argument("--large", type=float, default=4.0, help="GiB for the memory run; 0: skip")
    parser.add_argument("--times", type=int, default=3, help="repetitions of each row")
    parser.add_argument("--json", type=Path, default=Path("bench-results/bench.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meshnode-bench-") as scratch:
        results = _measure(Path(scratch), options)
    _print_table(results)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(_as_json(results), indent=2) + "\n")
    print(f"\nwritten to {options.json}")
    return 0


def _measure(scratch: Path, options: argparse.Namespace) -> list[Result]:
    file = scratch / "one.bin"
    size = _write_random(file, int(options.size * GIB), seed=1)
    folder = scratch / "many"
    small = _write_small_files(folder, options.files)
    rows = [baselines.copy("cp, one file", file, scratch, size, options.times)]
    rows.append(baselines.python_http(file, scratch, size, options.times))
    rows += _against_nginx(scratch, file, size, options.times)
    rows += _two_copies(scratch, file, size, options.times)
    rows.append(baselines.copy(f"cp -r, {options.files} files", folder, scratch, small, 1))
    rows += _put_and_get(scratch, folder, small, 1, f"{options.files} files", {})
    if options.large:
        file.unlink()
        large = _write_random(file, int(options.large * GIB), seed=2)
        rows += _put_and_get(scratch, file, large, 1, f"{options.large:g} GiB", {})
    return rows


def _against_nginx(scratch: Path, file: Path, size: int, times: int) -> list[Result]:
    """One file from one node, from four, and from nginx, in turns: the machine's mood is shared."""
    with (
        baselines.nginx(file, scratch, tls=False) as plain,
        baselines.nginx(file, scratch, tls=True) as tls,
    ):
        servers = {NGINX: plain, NGINX_TLS: tls}
        present = {name: server for name, server in servers.items() if server is not None}
        return _put_and_get(scratch, file, size, times, "one file", present)


def _put_and_get(
    scratch: Path,
    source: Path,
    size: int,
    times: int,
    what: str,
    servers: Mapping[str, baselines.Fetched],
) -> list[Result]:
    """Put and get with one copy; with servers to compare to also a get from four nodes."""
    put, get = Result(f"meshnode put, {what}", size), Result(f"meshnode get, {what}", size)
    rows = [*(Result(name, size) for name in servers), put, get]
    four = Result(f"meshnode get, {what}, from four", size)
    if servers:
        rows.append(four)
    for _ in range(times):
        # A fresh mesh each time: a chunk the store has already would cost nothing.
        with open_testnet(2, config={"storage.replication": "1"}, root=scratch) as mesh:
            for row, server in zip(rows, servers.values(), strict=False):
                recycle_pages(scratch, size)
                with row.run({"source": [server.pid]}):
                    server.fetch()
            recycle_pages(scratch, 2 * size)
            with put.run({"source": _pids(mesh, 1)}):
                link = _put(mesh[1], source)
            _get(mesh, link, source, get)
        if servers:
            _get_from_four(scratch, source, four)
    return rows


def _get_from_four(scratch: Path, source: Path, row: Result) -> None:
    with open_testnet(5, root=scratch) as mesh:
        # The fifth must not be given a copy, so it is away while they are placed.
        mesh[5].signal(signal.SIGTERM)
        mesh[5].reap(10)
        link = _put(mesh[1], source, "--replication", "4")
        mesh[5].start()
        mesh[5].wait_ready(4)
        _get(mesh, link, source, row)


def _get(mesh: Testnet, link: str, source: Path, row: Result) -> None:
    """The last node gets it; all others are its sources."""
    receiver = len(mesh.nodes)
    target = mesh.root / "got"
    roles = {"source": _pids(mesh, *range(1, receiver)), "receiver": _pids(mesh, receiver)}
    recycle_pages(mesh.root, row.bytes)
    with row.run(roles):
        mesh[receiver].must("--json", "get", link, "-o", target)
    _compare(source, target)
    baselines.remove(target)


def _two_copies(scratch: Path, source: Path, size: int, times: int) -> list[Result]:
    row = Result("meshnode put, one file, 2 copies", size)
    for _ in range(times):
        with open_testnet(2, config={"storage.replication": "2"}, root=scratch) as mesh:
            recycle_pages(scratch, 3 * size)
            with row.run({"source": _pids(mesh, 1), "receiver": _pids(mesh, 2)}):
                _put(mesh[1], source)
    return [row]


def _pids(mesh: Testnet, *numbers: int) -> list[int]:
    pids = [mesh[number].pid for number in numbers]
    return [pid for pid in pids if pid is not None]


def _put(node: TestnetNode, source: Path, *options: str) -> str:
    link: str = json.loads(node.must("--json", "put", *options, source))["sources"][0]["link"]
    return link


def _compare(source: Path, copy: Path) -> None:
    """The benchmark of a store that returned the wrong bytes would be worth nothing."""
    paths = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    for path in paths:
        other = copy if path == source else copy / path.relative_to(source)
        with path.open("rb") as a, other.open("rb") as b:
            while block := a.read(1 << 22):
                if block != b.read(1 << 22):
                    raise RuntimeError(f"{other} differs from {path}")
            if b.read(1):
                raise RuntimeError(f"{other} is longer than {path}")


def _write_random(path: Path, size: int, seed: int) -> int:
    source = random.Random(seed)
    with path.open("wb") as out:
        left = size
        while left:
            block = source.randbytes(min(left, 1 << 24))
            out.write(block)
            left -= len(block)
    return size


def _write_small_files(folder: Path, count: int) -> int:
    """`count` files of 0 to 16 KiB in folders of 100."""
    source = random.Random(3)
    total = 0
    for number in range(count):
        path = folder / f"{number // 100:03}" / f"file-{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = source.randbytes(source.randrange(16384))
        path.write_bytes(data)
        total += len(data)
    return total


def _print_table(results: list[Result]) -> None:
    table = Table(title=f"{platform.machine()}, {os.cpu_count()} cores, Python {sys.version[:6]}")
    for title in ("work", "s", "MB/s", "spread", "x of cp", "x of TLS"):
        table.add_column(title, justify="left" if title == "work" else "right")
    for title in ("command", "source", "receiver"):
        table.add_column(f"{title}\nCPU s/GiB", justify="right")
    for title in ("source", "receiver"):
        table.add_column(f"{title}\npeak MiB", justify="right")
    cp_rate = 0.0
    tls_rate = next((row.rate for row in results if row.name == NGINX_TLS), None)
    for row in results:
        if row.name.startswith("cp"):
            cp_rate = row.rate
        cpu = [_cell(row.cpu_per_gib(role)) for role in ("command", "source", "receiver")]
        memory = [_cell(row.peak(role), 0) for role in ("source", "receiver")]
        times = [f"{row.median_seconds:.2f}", f"{row.rate:.0f}", f"{row.spread:.2f}"]
        ratios = [_cell(row.rate / rate if rate else None, 3) for rate in (cp_rate, tls_rate)]
        table.add_row(row.name, *times, *ratios, *cpu, *memory)
    Console(width=140).print(table)


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _as_json(results: list[Result]) -> dict[str, Any]:
    return {
        "machine": {"cores": os.cpu_count(), "python": sys.version, "system": platform.platform()},
        "rows": [
            {
                "name": row.name,
                "bytes": row.bytes,
                "seconds": [run.seconds for run in row.runs],
                "mb_per_s": row.rate,
                "cpu_s_per_gib": {r: row.cpu_per_gib(r) for r in row.runs[0].costs},
                "peak_mib": {r: row.peak(r) for r in row.runs[0].costs if r != "command"},
            }
            for row in results
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
