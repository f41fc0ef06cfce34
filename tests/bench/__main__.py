"""`make bench`: meshnode against cp and plain HTTP on the same files in the same run.

One file put on node 1 and fetched by node 2 (two processes over loopback), ten thousand small
files likewise, and one large file for the memory bound. Prints a table, writes JSON. The numbers
are this machine's at this moment: read the ratios, and the spread for how noisy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.testnet import Testnet, TestnetNode, open_testnet

from . import baselines
from .measure import Result, repeat

GIB = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description="measure meshnode against cp and plain HTTP")
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
    results = [baselines.copy("cp, one file", file, scratch, size, options.times)]
    results.append(baselines.python_http(file, scratch, size, options.times))
    with_nginx = baselines.nginx(file, scratch, size, options.times)
    if with_nginx is not None:
        results.append(with_nginx)
    for copies in (1, 2):
        # A fresh mesh for each row group: a chunk the store has already would cost nothing.
        results += _put_and_get(scratch, file, size, copies, options.times, "one file")
    results.append(baselines.copy(f"cp -r, {options.files} files", folder, scratch, small, 1))
    results += _put_and_get(scratch, folder, small, 1, 1, f"{options.files} files")
    if options.large:
        file.unlink()
        large = _write_random(file, int(options.large * GIB), seed=2)
        results += _put_and_get(scratch, file, large, 1, 1, f"{options.large:g} GiB")
    return results


def _put_and_get(
    scratch: Path, source: Path, size: int, copies: int, times: int, what: str
) -> list[Result]:
    links: list[str] = []
    puts: list[Result] = []
    gets: list[Result] = []
    for _ in range(times):
        with open_testnet(2, config={"storage.replication": str(copies)}, root=scratch) as mesh:
            first, second = mesh[1], mesh[2]

            def put(_: int, node: TestnetNode = first) -> None:
                links.append(_put(node, source))

            def get(_: int, node: TestnetNode = second) -> None:
                node.must("--json", "get", links[-1], "-o", scratch / "got")

            pids = _pids(mesh)
            puts.append(repeat("put", size, 1, pids, put))
            if copies == 1:
                gets.append(repeat("get", size, 1, pids, get))
                _compare(source, scratch / "got")
                baselines.remove(scratch / "got")
    target = "" if copies == 1 else f", {copies} copies"
    rows = [Result(f"meshnode put, {what}{target}", size, [r for p in puts for r in p.runs])]
    if gets:
        rows.append(Result(f"meshnode get, {what}", size, [r for g in gets for r in g.runs]))
    return rows


def _pids(mesh: Testnet) -> dict[str, int]:
    first, second = mesh[1].pid, mesh[2].pid
    assert first is not None
    assert second is not None
    return {"source": first, "receiver": second}


def _put(node: TestnetNode, source: Path) -> str:
    link: str = json.loads(node.must("--json", "put", source))["sources"][0]["link"]
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
    for title in ("work", "s", "MB/s", "spread", "x of cp"):
        table.add_column(title, justify="left" if title == "work" else "right")
    for title in ("command", "source", "receiver"):
        table.add_column(f"{title}\nCPU s/GiB", justify="right")
    for title in ("source", "receiver"):
        table.add_column(f"{title}\npeak MiB", justify="right")
    cp_rate = 0.0
    for row in results:
        if row.name.startswith("cp"):
            cp_rate = row.rate
        cpu = [_cell(row.cpu_per_gib(role)) for role in ("command", "source", "receiver")]
        memory = [_cell(row.peak(role), 0) for role in ("source", "receiver")]
        times = [f"{row.median_seconds:.2f}", f"{row.rate:.0f}", f"{row.spread:.2f}"]
        table.add_row(row.name, *times, f"{row.rate / cp_rate:.3f}", *cpu, *memory)
    Console(width=130).print(table)


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
