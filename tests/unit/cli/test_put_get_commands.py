"""put, get and cat: requests made, words printed, exit codes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from meshnode.cli.transfer_report import _source_lines
from meshnode.errors import NotFoundError
from meshnode.node.content import Link
from meshnode.node.transfer import Failure, GetOptions, Progress, PutOptions, Started

from tests.unit.api.fake_node import LINK, PEER, FakeNode, file_entry, folder_manifest
from tests.unit.cli.conftest import Run


class Stdin:
    """Standard input that is not a terminal."""

    def __init__(self, data: bytes) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with its last reference
        self._file.write(data)
        self._file.seek(0)

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return False


def test_in_a_pipe_put_prints_the_links_and_nothing_else(run: Run, served: FakeNode) -> None:
    served.events = [Started("a", 10, 1), Progress(10, 1)]
    done = run("put", "/a", "/b")
    assert (done.code, done.out, done.err) == (0, f"{LINK}\n{LINK}\n", "")


def test_put_makes_paths_absolute_without_following_links(
    run: Run, served: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("/etc")
    monkeypatch.chdir(tmp_path)
    run("put", "link", "../x", "--public", "--replication", "2", "--chunker", "lines")
    options = PutOptions(public=True, replication=2, chunker="lines")
    paths = (Path(tmp_path / "link"), tmp_path.parent / "x")
    assert served.calls == [("put", paths, options)]


def test_put_takes_names_that_are_not_text(run: Run, served: FakeNode) -> None:
    run("put", os.fsdecode(b"/caf\xe9"))
    ((_, (path,), _),) = served.calls  # type: ignore[misc]
    assert os.fsencode(path) == b"/caf\xe9"


def test_a_weak_put_prints_its_link_says_what_to_do_and_exits_3(run: Run, served: FakeNode) -> None:
    served.outcome = "weak"
    done = run("put", "/a")
    assert done.code == 3
    assert done.out == f"{LINK}\n"
    assert "weak: a: 1 of 3 copies" in done.err
    assert "next: " in done.err


def test_a_partial_put_names_what_is_left_out(run: Run, served: FakeNode) -> None:
    served.outcome = "partial"
    served.failures = (Failure(b"no\nthing\xff", "is a named pipe"),)
    done = run("put", "/a")
    assert done.code == 3
    assert done.out == f"{LINK}\n"
    assert "left out: no\\nthing\\xff: is a named pipe" in done.err.replace("\\\\", "\\")


def test_a_failed_put_says_why_and_prints_no_link(run: Run, served: FakeNode) -> None:
    served.outcome = "failed"
    done = run("put", "/a")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: a is broken.\nnext: Mend it.\n"


def test_put_with_json_prints_the_report_as_one_document(run: Run, served: FakeNode) -> None:
    done = run("--json", "put", "/a")
    assert json.loads(done.out)["sources"][0]["peers"] == [str(PEER)]
    assert done.err == ""


def test_put_of_standard_input_carries_every_byte(
    run: Run, served: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 5000
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    done = run("put", "-", "--name", "caf\udce9")
    assert (done.code, done.out) == (0, f"{LINK}\n")
    assert served.received == data
    ((_, (source,), _),) = served.calls  # type: ignore[misc]
    assert os.fsencode(source.name) == b"caf\xe9"


@pytest.mark.parametrize("arguments", [["-", "/a"], ["-", "-"], ["/a", "--name", "x"], []])
def test_put_refuses_what_makes_no_sense(run: Run, served: FakeNode, arguments: list[str]) -> None:
    assert run("put", *arguments).code == 2
    assert served.calls == []


def test_get_goes_into_the_current_folder(
    run: Run, served: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("get", str(LINK))
    assert served.calls == [("get", LINK, tmp_path, GetOptions())]
    assert (done.code, done.out, done.err) == (0, f"{tmp_path}\n", "")


def test_get_takes_destination_path_and_force(
    run: Run, served: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("get", str(LINK), "-o", "sub/x", "--path", "in/side", "--force")
    options = GetOptions(path=b"in/side", force=True)
    assert served.calls == [("get", LINK, tmp_path / "sub/x", options)]


def test_get_with_json_prints_the_report(run: Run, served: FakeNode) -> None:
    done = run("get", str(LINK), "-o", "/x", "--json")
    assert json.loads(done.out)["bytes_from_peers"] == {str(PEER): 1234}


@pytest.mark.parametrize("command", [["cat"], ["get", "-o", "-"]])
def test_bytes_on_standard_output_are_all_there_is(
    run: Run, served: FakeNode, command: list[str]
) -> None:
    done = run(*command, str(LINK))
    assert (done.code, done.out, done.err) == (0, "some bytes", "")


def test_cat_asks_for_a_range_of_a_file_in_a_folder(run: Run, served: FakeNode) -> None:
    run("cat", str(LINK), "a/b", "--offset", "5", "--length", "6")
    assert served.calls == [("stream", LINK, b"a/b", 5, 6)]


def test_a_stream_that_breaks_off_ends_with_the_reason(run: Run, served: FakeNode) -> None:
    served.error, served.break_after = NotFoundError("A chunk is gone.", hint="Later."), 1
    done = run("cat", str(LINK))
    assert (done.code, done.out) == (4, "some ")
    assert done.err == "error: A chunk is gone.\nnext: Later.\n"


def test_a_stream_that_breaks_off_once_goes_on_where_it_was(
    run: Run, served: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = served.stream

    def mended(link: Link, path: bytes | None, offset: int, length: int | None) -> object:
        if offset:
            served.break_after = None
            served.error = None
        return whole(link, path, offset, length)

    monkeypatch.setattr(served, "stream", mended)
    served.error, served.break_after = NotFoundError("for now"), 1
    done = run("cat", str(LINK), "--length", "10")
    assert (done.code, done.out) == (0, "some bytes")
    assert [call[3:] for call in served.calls] == [(0, 10), (5, 5)]


def test_cat_leaves_no_room_for_json(run: Run, served: FakeNode) -> None:
    assert run("--json", "cat", str(LINK)).code == 2


def test_put_and_get_behave_the_same_in_an_embedded_node(run: Run, embedded: FakeNode) -> None:
    put = run("put", "/a")
    assert (put.code, put.out) == (0, f"{LINK}\n")
    assert "no node is running here" in put.err
    assert "meshnode start --detach" in put.err
    get = run("--quiet", "get", str(LINK), "-o", "/x")
    assert (get.code, get.out, get.err) == (0, "/x\n", "")
    cat = run("-q", "cat", str(LINK))
    assert (cat.code, cat.out, cat.err) == (0, "some bytes", "")


def test_an_embedded_put_of_standard_input_carries_every_byte(
    run: Run, embedded: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"x" * 700_000))
    assert run("put", "-").code == 0
    assert embedded.received == b"x" * 700_000


def test_an_embedded_nodes_error_keeps_its_exit_code(run: Run, embedded: FakeNode) -> None:
    embedded.error = NotFoundError("Nobody has it.", hint="Try later.")
    done = run("-q", "get", str(LINK), "-o", "/x")
    assert done.code == 4
    assert done.err == "error: Nobody has it.\nnext: Try later.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["put", ""],
        ["put", "/a", ""],
        ["put", "-", "--name", ""],
        ["get", str(LINK), "-o", ""],
        ["get", str(LINK), "-p", ""],
        ["get", str(LINK), "-p", "a/../../b"],
        ["get", ""],
        ["cat", " "],
        ["cat", str(LINK), "../x"],
        ["ls", ""],
        ["ls", str(LINK), ".."],
        ["stat", "x" * 5000],
        ["rm", str(LINK), ""],
        ["--home", "", "ls"],
    ],
)
def test_empty_and_impossible_arguments_are_refused_in_words_of_the_command_line(
    run: Run, served: FakeNode, arguments: list[str]
) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "\nnext: " in done.err
    assert "field" not in done.err
    assert served.calls == []


def test_put_of_a_closed_standard_input_says_so(
    run: Run, served: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    done = run("put", "-")
    assert done.code == 1
    assert "no standard input" in done.err
    assert "next: " in done.err


@pytest.mark.parametrize("command", [["cat"], ["get", "-o", "-"]])
def test_bytes_of_a_folder_are_a_matter_of_usage(
    run: Run, served: FakeNode, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    @asynccontextmanager
    async def refuse(*_: object) -> AsyncIterator[AsyncIterator[bytes]]:
        raise NotFoundError("The link is a folder.")
        yield

    monkeypatch.setattr(served, "stream", refuse)
    served.found = folder_manifest(file_entry(b"in/a"))
    done = run(*command, str(LINK))
    assert (done.code, done.out) == (2, "")
    assert "meshnode get" in done.err
    assert run("cat", str(LINK), "in").code == 2
    assert run("cat", str(LINK), "none").code == 4
    served.found = None
    assert run("cat", str(LINK)).code == 4


def test_peers_are_named_where_the_name_is_that_of_one() -> None:
    source: dict[str, object] = {
        "name": "a",
        "peers": [str(PEER), "twin-00000001", "other-12345678"],
    }
    names = {str(PEER): "cel\x1blar", "twin-00000001": "twin", "twin-2": "twin"}
    lines = "\n".join(_source_lines(source, names))
    assert "here and on cel\\x1blar, twin (00000001), 12345678;" in lines


def test_zones_are_told_only_where_there_are_several() -> None:
    source: dict[str, object] = {"survives_nodes": 1, "survives_zones": 0, "zones": ["attic"]}
    assert _source_lines(source, {})[-1] == "  survives the loss of 1 node"
    source["zones"] = ["attic", "cellar"]
    assert _source_lines(source, {})[-1] == "  survives the loss of 1 node or 0 zones"
