"""What `make demo` shows: a real file and a real folder, kept by five nodes, one of which dies."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testnet import Testnet, TestnetNode

MB = 1_000_000


def run_demo(testnet: Testnet) -> int:
    """Put on the first node, get on the last, kill a holder, get again; 0 if all digests agree."""
    giver, taker = testnet.nodes[0], testnet.nodes[-1]
    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as scratch:
        work = Path(scratch)
        file, folder = _prepare_inputs(work)
        print(
            f"\nInput file: {file.name}, {_size(file) / MB:.1f} MB (this Python's library as a tar)"
        )
        files = sum(1 for path in folder.rglob("*") if path.is_file())
        print(f"Input folder: {folder.name}/, {files} files, {_size(folder) / MB:.1f} MB")
        reports = {path: _put(giver, path) for path in (file, folder)}
        good = _get_all(taker, reports, work / "first")
        victim = _pick_holder(testnet, reports[file])
        print(f"\nkill -9 {victim.name} (pid {victim.pid}), one of the holders")
        victim.kill()
        good &= _get_all(taker, reports, work / "second")
    print("\nEvery byte came back the same." if good else "\nFAILED: digests differ.")
    return 0 if good else 1


def _prepare_inputs(work: Path) -> tuple[Path, Path]:
    """A large real file and a folder of many small ones, from the Python installation itself."""
    library = Path(sysconfig.get_path("stdlib"))
    folder = work / "library"
    folder.mkdir()
    for package in ("asyncio", "email", "encodings", "json", "unittest", "collections", "http"):
        _copy_sources(library / package, folder / package)
    file = work / "library.tar"
    with tarfile.open(file, "w") as archive:
        for path in sorted(library.iterdir()):
            if path.name not in ("site-packages", "dist-packages"):
                archive.add(path, path.name, filter=_no_caches)
    return file, folder


def _no_caches(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(info.name).name == "__pycache__" else info


def _copy_sources(source: Path, target: Path) -> None:
    for path in source.rglob("*.py"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def _put(node: TestnetNode, path: Path) -> dict[str, Any]:
    started = time.perf_counter()
    result = json.loads(node.must("--json", "put", path))
    seconds = time.perf_counter() - started
    report: dict[str, Any] = result["sources"][0]
    print(
        f"\nput {path.name} on {node.name}: {report['outcome']}, {report['chunks']} chunks, "
        f"{report['copies']} copies on {1 + len(report['peers'])} nodes, survives the loss of "
        f"{report['survives_nodes']}; {seconds:.2f} s, {_size(path) / MB / seconds:.0f} MB/s\n"
        f"  {report['link']}"
    )
    return report


def _get_all(node: TestnetNode, reports: dict[Path, dict[str, Any]], target: Path) -> bool:
    target.mkdir()
    good = True
    for source, report in reports.items():
        copy = target / source.name
        started = time.perf_counter()
        result = json.loads(node.must("--json", "get", report["link"], "-o", copy))
        seconds = time.perf_counter() - started
        want, have = _sha256(source), _sha256(copy)
        same = want == have
        good &= same
        holders = len(result["bytes_from_peers"])
        print(
            f"get {source.name} on {node.name}: {seconds:.2f} s, "
            f"{_size(copy) / MB / seconds:.0f} MB/s, from {holders} peer{'s' * (holders != 1)}; "
            f"SHA-256 {have[:16]}... {'same' if same else f'DIFFERS from {want[:16]}...'}"
        )
    return good


def _pick_holder(testnet: Testnet, report: dict[str, Any]) -> TestnetNode:
    """A node that holds chunks, but neither the giver (the hardest loss) nor the taker."""
    holders = set(report["peers"])
    for node in testnet.nodes[1:-1]:
        if node.peer_id in holders:
            return node
    print("note: no middle node holds a copy; killing the giver instead", file=sys.stderr)
    return testnet.nodes[0]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, over the sorted relative paths and their files' bytes."""
    total = hashlib.sha256()
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for entry in paths:
        if entry != path:
            total.update(bytes(entry.relative_to(path)) + b"\0")
        with entry.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()
