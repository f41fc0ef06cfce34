"""start and stop, on processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from meshnode.cli import daemon, http_client, node_commands

from tests.unit.api.fake_node import PEER, FakeNode
from tests.unit.cli.conftest import Run

SERVICE = """
import contextlib, fcntl, os, sys, trio, types
from meshnode.cli.main import main
from meshnode.errors import RefusedError
from tests.unit.api.fake_node import FakeNode

mode = sys.argv[1]

@contextlib.asynccontextmanager
async def open_fake(config):
    if mode == "port":
        raise ExceptionGroup("nursery", [RefusedError("Port 4710 is taken.", hint="Choose.")])
    with open(config.paths.lock_file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        if mode == "slow start":
            print("opening", flush=True)
            await trio.sleep_forever()
        yield FakeNode(config)
        if mode.startswith("slow stop"):
            print("closing", flush=True)
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()

# In place of the module: loading the network library takes seconds.
sys.modules["meshnode.node.node"] = types.SimpleNamespace(open_node=open_fake)
import meshnode.node.api.service as service
if mode == "slow stop forced":
    service.STOP_SECS = 0.1
sys.exit(main(sys.argv[2:]))
"""


@contextmanager
def service(node: FakeNode, mode: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    node.config.paths.mesh_file.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, mode, "start", *arguments],
        stdout=-1,
        stderr=-1,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    seen = ""
    while word not in seen:
        line = process.stdout.readline()
        assert line, (seen, process.communicate())
        seen += line
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_cleanly(node: FakeNode, number: signal.Signals) -> None:
    with service(node, "") as process:
        seen = read_until(process, "ready")
        assert f"listens: /ip4/127.0.0.1/tcp/4710/p2p/{PEER}" in seen
        assert node.config.paths.socket.exists()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert not node.config.paths.socket.exists()
        events = [json.loads(line)["event"] for line in err.splitlines()]
        assert events == ["ready", "signal", "stopping", "stopped"]


def test_stop_waits_until_the_process_is_gone(run: Run, node: FakeNode) -> None:
    with service(node, "") as process:
        read_until(process, "ready")
        done = run("--json", "stop")
        assert process.poll() == 0
        assert json.loads(done.out) == {"was_running": True, "pid": process.pid}
    assert run("stop").err == "no node is running here\n"


def test_a_signal_during_the_start_ends_it(node: FakeNode) -> None:
    with service(node, "slow start") as process:
        read_until(process, "opening")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_second_signal_ends_a_node_that_hangs_at_once(node: FakeNode) -> None:
    with service(node, "slow stop") as process:
        read_until(process, "ready")
        process.send_signal(signal.SIGTERM)
        read_until(process, "closing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


def test_a_stop_that_hangs_is_ended_by_force(node: FakeNode) -> None:
    with service(node, "slow stop forced") as process:
        read_until(process, "ready")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "stop_forced" in err


def test_a_taken_port_is_told_in_words(node: FakeNode) -> None:
    with service(node, "port") as process:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 5
        assert err == "error: Port 4710 is taken.\nnext: Choose.\n"


def test_readiness_is_told_by_the_pipe(node: FakeNode) -> None:
    node.config.paths.mesh_file.touch()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, "", "start", f"--ready-fd={writer}"],
        stdout=-1,
        stderr=-1,
        pass_fds=[writer],
        cwd=Path(__file__).parents[3],
    )
    os.close(writer)
    with open(reader) as pipe:
        assert json.loads(pipe.read())["peer_id"] == str(PEER)
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"")


def test_start_refuses_when_a_node_runs_and_names_it(run: Run, served: FakeNode) -> None:
    served.config.paths.mesh_file.touch()
    done = run("start")
    assert done.code == 5
    assert "process 4242" in done.err


def test_start_refuses_an_address_that_makes_no_sense(run: Run, home: Path) -> None:
    run("init")
    done = run("start", "--listen", "localhost:4710")
    assert done.code == 2
    assert "network.listen" in done.err


def test_a_detached_node_that_dies_shows_its_last_words(run: Run, home: Path) -> None:
    run("init")
    (home / "identity.pem").write_text("not a key")
    done = run("start", "--detach")
    assert done.code == 1
    assert "exit code 1" in done.err
    assert "identity.pem" in done.err
    assert str(home / "node.log") in done.err


def test_a_node_that_is_stopped_is_named_and_can_still_be_ended(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "ANSWER_SECS", 0.2)
    with service(node, "") as process:
        read_until(process, "ready")
        process.send_signal(signal.SIGSTOP)
        for command in ("status", "peers"):
            done = run(command)
            assert done.code == 6
            assert f"(process {process.pid}) has not answered" in done.err
            assert "meshnode stop" in done.err
        done = run("stop")
        assert done.code == 0
        assert f"(process {process.pid}) does not answer: sending SIGTERM" in done.err
        # It was let go on to end in order.
        assert process.wait(30) == 0


def test_stop_says_that_it_waits_and_ends_what_hangs(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "ASK_SECS", 0.1)
    with service(node, "slow stop") as process:
        read_until(process, "ready")
        done = run("stop")
        assert done.code == 0
        assert "has not ended yet: sending SIGTERM" in done.err
        assert process.wait(30) < 0


def test_a_failed_start_shows_nothing_of_earlier_runs(run: Run, home: Path) -> None:
    run("init")
    (home / "node.log").write_text("error: the failure of yesterday\n")
    (home / "identity.pem").write_text("not a key")
    done = run("start", "--detach")
    assert done.code == 1
    assert "identity.pem" in done.err
    assert "yesterday" not in done.err


def test_the_last_words_are_the_error_where_there_is_one(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    chatter = '{"level": "info", "event": "up"}\n2026 [info     ] up\n'
    log.write_text("old\n" + chatter + "{}\nerror: no\nnext: do\n")
    assert daemon._last_lines(log, 4) == "  {}\n  error: no\n  next: do"
    log.write_text(chatter)
    assert "up" in daemon._last_lines(log, 0)


def test_a_log_that_cannot_be_opened_has_a_next_step(run: Run, home: Path) -> None:
    run("init")
    (home / "node.log").mkdir()
    done = run("start", "--detach")
    assert done.code == 1
    assert "node.log cannot be opened" in done.err
    assert "next: " in done.err


def started(home: Path, **facts: object) -> dict[str, object]:
    return {"pid": 1, "addresses": [], "connected_peers": 0, "known_peers": 0, **facts}


def test_a_start_that_reaches_nobody_it_was_invited_by_says_so(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    run("--home", first, "init")
    run("--home", first, "config", "set", "network.announce",
        '["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1"]')  # fmt: skip
    run("join", run("--home", first, "-q", "invite").out.strip())
    facts = started(home)
    monkeypatch.setattr(node_commands, "start_detached", lambda *_: facts)
    done = run("start", "--detach")
    assert done.code == 0
    assert "none of the 2 addresses of the invitation answers" in done.err
    for word in ("meshnode invite", "meshnode join", "network.bootstrap"):
        assert word in done.err
    facts["connected_peers"] = 1
    assert run("start", "--detach").err == ""


def test_a_first_node_is_alone_without_a_warning(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    monkeypatch.setattr(node_commands, "start_detached", lambda *_: started(home))
    assert run("start", "--detach").err == ""


def test_a_store_that_was_rebuilt_is_told_at_the_start_and_by_status(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    facts = started(home, store_rebuilt=True)
    monkeypatch.setattr(node_commands, "start_detached", lambda *_: facts)
    assert "warning: the store's index was damaged" in run("start", "--detach").err
    asked = SimpleNamespace(call=lambda *_: facts)
    monkeypatch.setattr(node_commands, "connect_running", lambda _: asked)
    assert "warning: the store's index was damaged" in run("status").err
    facts["store_rebuilt"] = False
    assert run("status").err == ""


def test_joining_again_while_the_node_runs_asks_for_a_restart(
    run: Run, served: FakeNode, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run("--home", first, "init")
    run("--home", first, "config", "set", "network.announce", '["/ip4/192.0.2.1/tcp/1"]')
    token = run("--home", first, "-q", "invite").out.strip()
    assert "meshnode stop && meshnode start --detach" in run("join", token).err
    assert json.loads(run("--json", "join", token).out)["restart_needed"] is True
