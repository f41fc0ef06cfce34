"""A put whose node is killed goes on where it was, and `why` tells of it."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from scripts.testnet import MESHNODE, TestnetNode, open_testnet

_WINDOW_BYTES = 8 << 20


def eventually(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def receipts(node: TestnetNode) -> int:
    """How many the node has written down."""
    database = node.home / "data" / "index.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM receipts").fetchone()[0])


def chunks(node: TestnetNode) -> int:
    return int(json.loads(node.must("--json", "status"))["store"]["chunks"])


def offers(node: TestnetNode) -> bool:
    peers = json.loads(node.must("--json", "peers"))["peers"]
    return any(peer["available_bytes"] is not None for peer in peers)


def test_a_put_whose_node_was_killed_sends_nothing_twice(tmp_path: Path) -> None:
    data = random.randbytes(3 * _WINDOW_BYTES)
    with open_testnet(2, config={"storage.replication": "2"}) as mesh:
        # The second node knows from its invitation where the first one is, also after a crash.
        first, second = mesh[2], mesh[1]
        eventually(lambda: offers(first), "the nodes know what they offer each other")
        command = [*MESHNODE, "put", "-", "--name", "stream"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=first.environment()
        ) as putting:
            assert putting.stdin is not None
            putting.stdin.write(data[: 2 * _WINDOW_BYTES])
            putting.stdin.flush()
            eventually(lambda: receipts(first) > 0, "receipts are written down")
            first.kill()
            with contextlib.suppress(BrokenPipeError):
                putting.stdin.close()
            assert putting.wait() != 0
        written, there = receipts(first), chunks(second)
        first.start()
        first.wait_ready(connected_peers=1)
        eventually(lambda: offers(first), "the nodes know what they offer each other")
        file = tmp_path / "stream"
        file.write_bytes(data)
        (report,) = json.loads(first.must("--json", "put", file))["sources"]
        assert report["outcome"] == "stored"
        assert report["found_copies"] == written
        # What the peer had without our knowing is acknowledged without bytes.
        new_there = chunks(second) - there
        assert report["receipts"] - report["found_copies"] >= new_there > 0
        assert report["bytes_sent"] < len(data)
        second.must("get", report["link"], "-o", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
        told = json.loads(first.must("--json", "why", report["link"]))["transfers"]
        assert [transfer["outcome"] for transfer in told] == ["stored"]
        assert told[0]["counts"]["copies_found"] == written
