"""Start, stop, interrupt and kill, as an operator does."""

from __future__ import annotations

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


def test_ctrl_c_during_a_get_leaves_no_half_file_and_no_process(
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
        assert list(target.parent.iterdir()) == []


def test_ctrl_c_with_an_embedded_node_leaves_nothing_behind(mesh: Testnet, tmp_path: Path) -> None:
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
        assert list(target.parent.iterdir()) == []


def _fill(path: Path, mebibytes: int) -> None:
    with path.open("wb") as out:
        for _ in range(mebibytes // 16):
            out.write(random.randbytes(16 << 20))


def _interrupt_when_working(
    node: TestnetNode, target: Path, *arguments: str
) -> subprocess.Popen[bytes]:
    """Run a command, send it SIGINT as soon as its temporary file appears, wait for its end."""
    process = subprocess.Popen(
        [*MESHNODE, *arguments],
        env=node.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not any(target.parent.iterdir()):
        assert process.poll() is None, "the transfer ended before it could be interrupted"
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=20)
    assert b"Traceback" not in err, err
    assert not target.exists()
    return process
