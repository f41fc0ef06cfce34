"""Start, stop, interrupt and kill, as an operator does."""

from __future__ import annotations

import filecmp
import json
import os
import random
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from scripts.testnet import MESHNODE, Testnet, TestnetNode, open_testnet


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_stops_cleanly_within_five_seconds(number: signal.Signals) -> None:
    with open_testnet(2) as mesh:
        node = mesh[2]
        node.signal(number)
        assert node.reap(5.0), node.last_log_lines()
        assert node.process is not None
        assert node.process.returncode == 0, node.last_log_lines()
        assert not node.socket.exists()
        assert "Traceback" not in node.log_path.read_text()


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path, random_file: Path) -> None:
    with open_testnet(1, config={"storage.replication": "1"}) as mesh:
        link = mesh[1].must("put", random_file).strip()
        mesh[1].kill()
        mesh[1].start()
        mesh[1].wait_ready()
        mesh[1].must("get", link, "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == random_file.read_bytes()


def test_detach_returns_when_the_node_serves_and_stop_ends_it(tmp_path: Path) -> None:
    node = TestnetNode(1, tmp_path / "home", {})
    node.must("init")
    node.must("config", "set", "network.listen", '["/ip4/127.0.0.1/tcp/0"]')
    node.must("config", "set", "network.mdns", "false")
    node.must("start", "--detach")
    try:
        status = json.loads(node.must("--json", "status"))
        assert status["ready"]
        assert psutil.pid_exists(status["pid"])
    finally:
        node.must("stop")
    assert not psutil.pid_exists(status["pid"])


def test_ctrl_c_during_a_get_leaves_no_process_and_what_the_next_get_goes_on_from(
    tmp_path: Path,
) -> None:
    source = tmp_path / "large"
    _fill(source, 256)
    with open_testnet(2, config={"storage.replication": "1"}) as mesh:
        link = mesh[1].must("put", source).strip()
        target = tmp_path / "out" / "copy"
        target.parent.mkdir()
        process = _interrupt_when_working(mesh[2], target, "get", link, "-o", str(target))
        assert process.returncode == 130
        mesh[2].must("status")  # the node itself is unharmed
        _assert_resumes(mesh[2], link, source, target)


def test_a_get_by_an_embedded_node_goes_on_after_ctrl_c(mesh: Testnet, tmp_path: Path) -> None:
    source = tmp_path / "large"
    _fill(source, 192)
    with open_testnet(1, config={"storage.replication": "1"}) as other:
        link = other[1].must("put", source).strip()
        guest = TestnetNode(9, tmp_path / "guest", {})
        guest.must("join", json.loads(other[1].must("--json", "invite"))["token"])
        guest.must("config", "set", "network.mdns", "false")
        target = tmp_path / "out" / "copy"
        target.parent.mkdir()
        process = _interrupt_when_working(guest, target, "get", link, "-o", str(target))
        assert process.returncode == 130
        _assert_resumes(guest, link, source, target)


def _assert_resumes(node: TestnetNode, link: str, source: Path, target: Path) -> None:
    """What an interrupted get left is taken over by the next one, which leaves nothing else."""
    assert {path.suffix for path in target.parent.iterdir()} == {".part", ".journal"}
    report = json.loads(node.must("--json", "get", link, "-o", target))
    assert 0 < report["bytes_kept"] < source.stat().st_size
    assert filecmp.cmp(source, target, shallow=False)
    assert list(target.parent.iterdir()) == [target]


def _fill(path: Path, mebibytes: int) -> None:
    with path.open("wb") as out:
        for _ in range(mebibytes // 16):
            out.write(random.randbytes(16 << 20))


def _interrupt_when_working(
    node: TestnetNode, target: Path, *arguments: str
) -> subprocess.Popen[bytes]:
    """Run a get, send it SIGINT as soon as some chunks are in place, wait for its end."""
    process = subprocess.Popen(
        [*MESHNODE, *arguments],
        env=node.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not any(path.stat().st_size > 500 for path in target.parent.glob(".*.journal")):
        assert process.poll() is None, "the transfer ended before it could be interrupted"
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=20)
    assert b"Traceback" not in err, err
    assert b"are kept: run the same command again" in err
    assert not target.exists()
    return process
