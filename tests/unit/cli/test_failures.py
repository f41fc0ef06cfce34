"""Every way to fail: words on standard error, the exit code, JSON when asked."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

import pytest
from meshnode.cli import connect, http_client
from meshnode.cli.config_commands import config
from meshnode.cli.main import cli
from meshnode.errors import (
    ApiUnavailableError,
    DeadlineError,
    DestinationError,
    IntegrityError,
    LinkError,
    MembershipError,
    MeshError,
    NotFoundError,
    PartialError,
    PeerError,
    QuotaError,
    StoreError,
    StoreLockedError,
    TransferError,
    WrongKeyError,
)

from tests.unit.api.fake_node import LINK, OTHER_LINK, FakeNode
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (MeshError, 1),
        (LinkError, 2),
        (PartialError, 3),
        (NotFoundError, 4),
        (MembershipError, 5),
        (QuotaError, 5),
        (StoreLockedError, 5),
        (DeadlineError, 6),
        (DestinationError, 1),
        (IntegrityError, 1),
        (WrongKeyError, 1),
        (PeerError, 1),
        (StoreError, 1),
        (TransferError, 1),
        (ApiUnavailableError, 1),
    ],
)
def test_an_error_has_its_exit_code_words_and_next_step(
    run: Run, served: FakeNode, kind: type[MeshError], code: int
) -> None:
    served.error = kind("It went wrong.", hint="Do this.")
    plain = run("get", str(LINK), "-o", "/x")
    assert (plain.code, plain.out) == (code, "")
    assert plain.err == "error: It went wrong.\nnext: Do this.\n"
    as_json = run("--json", "get", str(LINK), "-o", "/x")
    assert as_json.code == code
    told = json.loads(as_json.out)["error"]
    assert (told["message"], told["hint"], told["exit_code"]) == (
        "It went wrong.",
        "Do this.",
        code,
    )


def test_a_bug_in_the_node_is_told_without_a_traceback(run: Run, served: FakeNode) -> None:
    served.error = ZeroDivisionError("the secret is 42")
    done = run("stat", str(LINK))
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert "42" not in done.err


def test_a_bug_in_the_command_is_told_without_a_traceback(
    run: Run, served: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("details")

    monkeypatch.setattr(http_client.HttpClient, "call", broken)
    done = run("status")
    assert done.code == 1
    assert "next: " in done.err
    assert "-v" in done.err


@pytest.mark.parametrize("command", [["status"], ["peers"], ["config", "show", "--running"]])
def test_a_command_for_a_running_node_says_when_there_is_none(
    run: Run, home: Path, command: list[str]
) -> None:
    done = run(*command)
    assert done.code == 1
    assert "No node is running here" in done.err
    assert "meshnode start" in done.err


@pytest.mark.parametrize(
    "command", [["put", "/a"], ["get", str(LINK)], ["ls"], ["start"], ["invite"]]
)
def test_a_home_without_a_mesh_points_to_init_and_join(
    run: Run, home: Path, command: list[str]
) -> None:
    done = run(*command)
    assert done.code == 5
    assert "meshnode init" in done.err
    assert "meshnode join" in done.err


def test_a_stale_socket_is_the_same_as_none(run: Run, embedded: FakeNode) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(embedded.config.paths.socket))
    assert run("put", "/a").code == 0


def test_a_process_that_has_the_home_and_does_not_answer_is_named(
    run: Run, embedded: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_SETTLE_SECS", 0.1)
    with embedded.config.paths.lock_file.open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("put", "/a")
    assert done.code == 5
    assert f"process {os.getpid()}" in done.err
    assert embedded.calls == []


@pytest.mark.parametrize("content", ["", "junk", "99999999999999999999\n", "OURS\n"])
def test_a_lock_file_nobody_holds_is_in_nobodys_way(
    run: Run, embedded: FakeNode, content: str
) -> None:
    embedded.config.paths.lock_file.write_text(content.replace("OURS", str(os.getpid())))
    assert run("put", "/a").code == 0


def test_a_node_that_says_nothing_is_given_up(
    run: Run, home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "ANSWER_SECS", 0.1)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(node.config.paths.socket))
        frozen.listen()
        done = run("status")
    assert done.code == 6
    assert "has not answered" in done.err


def test_a_socket_that_may_not_be_used_is_told(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    done = run("status")
    assert done.code == 1
    assert "Permission denied" in done.err


def test_something_else_behind_the_socket_is_told(
    run: Run, served: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "_last_line", lambda answer, _: http_client._object("<html>"))
    done = run("stat", str(LINK))
    assert done.code == 1
    assert "does not speak" in done.err


def test_a_command_line_that_makes_no_sense_exits_2(run: Run, served: FakeNode) -> None:
    assert run("frobnicate").code == 2
    assert run("put").code == 2
    assert run("--nonsense").code == 2


def test_a_config_with_mistakes_names_each_of_them(run: Run, home: Path) -> None:
    (home / "config.toml").write_text("[node]\nnam = 1\n[storage]\nreplication = 99\n")
    done = run("ls")
    assert done.code == 2
    assert "node.nam" in done.err
    assert "storage.replication" in done.err
    assert os.fspath(home / "config.toml") in done.err


@pytest.mark.parametrize("command", ["status", "peers", "stop"])
def test_a_config_with_mistakes_does_not_hide_the_node_that_runs(
    run: Run, served: FakeNode, command: str
) -> None:
    (served.config.paths.config_file).write_text("this is no TOML")
    assert run("ls").code == 2
    assert run(command).code == 0
    if command == "stop":
        assert served.stop_requested.is_set()


def test_a_mistake_in_the_environment_is_told_though_a_node_runs(
    run: Run, settled: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("ls").code == 0
    monkeypatch.setenv("MESHNODE_STORAGE_REPLICATION", "99")
    done = run("ls")
    assert done.code == 2
    assert "MESHNODE_STORAGE_REPLICATION" in done.err


@pytest.mark.parametrize(
    "arguments",
    [["put", "--json"], ["--json", "put"], ["put", "/a", "--nonsense", "--json"], ["--json", "no"]],
)
def test_a_command_line_that_makes_no_sense_is_told_as_json_when_asked(
    run: Run, served: FakeNode, arguments: list[str]
) -> None:
    done = run(*arguments)
    assert done.code == 2
    told = json.loads(done.out)["error"]
    assert (told["code"], told["exit_code"]) == ("usage", 2)
    assert "--help" in told["hint"]
    assert told["message"] in done.err


def test_what_only_concerns_http_is_left_out_of_json_errors(run: Run, served: FakeNode) -> None:
    assert "http_status" not in run("--json", "stat", str(LINK)).out
    removed = run("--json", "rm", str(LINK), str(OTHER_LINK)).out
    assert json.loads(removed)["links"][1]["error"]["code"] == "not_found"
    assert "http_status" not in removed


def test_every_command_has_a_line_of_its_own_in_the_help(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group, commands in (([], cli.commands), (["config"], config.commands)):
        shown = run(*group, "--help").out
        assert "..." not in shown.partition("Commands:")[2]
        assert max(len(line) for line in shown.splitlines()) <= 80
        assert len(shown.partition("Commands:\n")[2].splitlines()) == len(commands)
