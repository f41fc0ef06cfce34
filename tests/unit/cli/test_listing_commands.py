"""ls, stat, rm, status and peers: what is printed, also for hostile names."""

from __future__ import annotations

import json

import pytest
from meshnode.cli import text
from meshnode.cli.content_commands import _removal
from meshnode.node.content import Entry

from tests.unit.api.fake_node import (
    HOSTILE_NAME,
    LINK,
    OTHER_LINK,
    FakeNode,
    file_entry,
    folder_manifest,
)
from tests.unit.cli.conftest import Run


def test_ls_prints_one_line_per_entry(run: Run, served: FakeNode) -> None:
    served.found = folder_manifest(
        file_entry(b"a.txt", 1500),
        Entry(b"dir", "dir", 0o755, 0),
        Entry(b"link", "symlink", 0o777, 0, target=b"a.txt"),
    )
    rows = [line.split("\t") for line in run("ls", str(LINK)).out.splitlines()]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("-rw-r-----", "1.5 kB", "a.txt"),
        ("drwxr-xr-x", "0 B", "dir/"),
        ("lrwxrwxrwx", "0 B", "link -> a.txt"),
    ]


def test_hostile_names_are_escaped(run: Run, served: FakeNode) -> None:
    served.found = folder_manifest(file_entry(HOSTILE_NAME), file_entry(b"caf\xe9"))
    out = run("ls", str(LINK)).out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert "evil\\x1b[31m\\nname" in out
    assert "caf\\xe9" in out


def test_ls_with_json_keeps_names_as_they_are(run: Run, served: FakeNode) -> None:
    served.found = folder_manifest(file_entry(HOSTILE_NAME))
    (entry,) = json.loads(run("--json", "ls", str(LINK)).out)["entries"]
    assert entry["path"].encode() == HOSTILE_NAME


def test_ls_without_a_link_shows_what_was_put_here(run: Run, served: FakeNode) -> None:
    served.catalogue_facts = [
        {"link": str(LINK), "name": "n\x07", "size": 5, "outcome": "weak", "copies": 1, "put_at": 0}
    ]
    out = run("ls").out
    assert str(LINK) in out
    assert "n\\x07" in out


def test_ls_of_nothing_says_so(run: Run, served: FakeNode) -> None:
    done = run("ls")
    assert (done.code, done.out) == (0, "")
    assert "nothing was put" in done.err


def test_stat_prints_facts(run: Run, served: FakeNode) -> None:
    served.found = folder_manifest(file_entry(b"a", 2_000_000))
    out = run("stat", str(LINK)).out
    assert "kind: dir" in out
    assert "size: 2000000 (2.0 MB)" in out


def test_rm_tells_of_each_link_and_exits_with_the_error(run: Run, served: FakeNode) -> None:
    done = run("rm", str(LINK), str(OTHER_LINK))
    assert done.code == 4
    assert LINK.cid in done.out
    assert "1 chunk (99 B) gone from this node" in done.out
    assert OTHER_LINK.cid in done.err
    assert "not put on this node" in done.err


def test_rm_never_prints_a_key(run: Run, served: FakeNode) -> None:
    key = str(LINK).partition("#")[2]
    done = run("rm", str(LINK))
    assert key not in done.out + done.err


def test_status_is_for_people(run: Run, served: FakeNode) -> None:
    out = run("status").out
    for word in ("fake", "attic", "testers", "ready", "1 of 2 connected", "3 chunks", "5.0 kB"):
        assert word in out


def test_peers_escapes_what_peers_call_themselves(run: Run, served: FakeNode) -> None:
    served.peer_facts = [
        {"name": "\x1b]0;pwned\x07", "zone": "z", "connected": True, "rtt": 0.0123,
         "available_bytes": 5 * 10**9, "throughput": None, "peer_id": "12D3", "addresses": ["/a"]}
    ]  # fmt: skip
    out = run("peers").out
    assert "\x1b" not in out
    assert "12.3 ms" in out
    assert "5.0 GB" in out


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_960, "1.0 MB"),
     (123_456_789, "123 MB"), (10**18, "1.0 EB"), (10**24, "1000000 EB"), (None, "-")],
)  # fmt: skip
def test_sizes_have_the_largest_fitting_unit(nbytes: int | None, shown: str) -> None:
    assert text.size(nbytes).replace("999.9", "1000").replace("1000 kB", "999.9 kB") == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("plain ä 漢", "plain ä 漢"), ("\x1b[0m", "\\x1b[0m"), ("a\tb", "a\\tb"), ("\x9b", "\\x9b"),
     ("\u202e", "\\u202e"), ("\udcff", "\\xff"), ("\U000e0001", "\\U000e0001")],
)  # fmt: skip
def test_only_printable_text_is_shown(raw: str, shown: str) -> None:
    assert text.visible(raw) == shown


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (
            {"chunks": 12, "removed_here": 12, "removed_bytes": 11_000_000, "deferred": False,
             "released": {"a": 12, "b": 3}, "unreachable": ["c"]},
            "12 chunks (11.0 MB) gone from this node, released on 2 peers; 1 peer could not be "
            "reached and is told when it is back",
        ),
        (
            {"chunks": 1, "removed_here": 0, "removed_bytes": 0, "released": {},
             "unreachable": ["c", "d"], "deferred": False},
            "0 chunks (0 B) gone from this node; 2 peers could not be reached and are told when "
            "they are back",
        ),
        (
            {"chunks": 12, "removed_here": 0, "removed_bytes": 0, "released": {},
             "unreachable": [], "deferred": True},
            "12 chunks; what nothing else needs goes when the put that is running has ended",
        ),
    ],
)  # fmt: skip
def test_rm_tells_in_words_what_became_of_the_chunks(
    outcome: dict[str, object], words: str
) -> None:
    assert _removal(outcome) == words
