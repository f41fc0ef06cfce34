"""`meshnode why`: the story of a transfer, from a running node, from a database, for programs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio
from meshnode.config import load_config
from meshnode.dht.peer_id import PeerId
from meshnode.errors import EXIT_NOT_FOUND, EXIT_USAGE
from meshnode.node.content import Link
from meshnode.node.store import open_store
from meshnode.node.transfer.explain import Explained
from meshnode.node.transfer.trace import PeerPart, Phase, Trace
from meshnode.node.transfer.trace_log import TRACES, TraceLog

from tests.unit.api.fake_node import LINK, FakeNode
from tests.unit.cli.conftest import Run

PEER = PeerId.from_ed25519(b"\x44" * 32)
TRACE = Trace(
    kind="put",
    name="film\x1b[31m.mkv",
    root=LINK.digest,
    began=1.8e9,
    seconds=4.0,
    outcome="weak",
    size=1_000_000,
    phases=(Phase("last copies", 3.0, 2.0, 1),),
    peers=(PeerPart(PEER, 3, 900_000, 3.0),),
    counts={"chunks": 3, "copies": 2, "wanted_copies": 3},
)


def test_why_tells_the_story_of_a_link(run: Run, served: FakeNode) -> None:
    served.transfer_facts = [Explained(TRACE, {PEER: "nas"}).to_json()]
    done = run("why", str(LINK))
    assert done.code == 0
    assert "decided by the peers: 75 % of the time" in done.out
    assert f"nas ({PEER.short}): took 900 kB in 3.00 s" in done.out
    assert "2 of 3 copies" in done.out
    assert "\x1b" not in done.out
    assert ("transfers", LINK.digest, 10) in served.calls


def test_why_without_a_link_tells_the_latest_and_lists_the_ones_before(
    run: Run, served: FakeNode
) -> None:
    older = replace(TRACE, kind="get", name="old", outcome="done", seconds=2.0)
    served.transfer_facts = [Explained(TRACE).to_json(), Explained(older).to_json()]
    out = run("why").out
    assert "decided by" in out
    assert out.count("decided by") == 1
    assert "get old: done, 1.0 MB in 2.00 s (500 kB/s)" in out
    assert ("transfers", None, 10) in served.calls


def test_why_with_json_gives_numbers_and_words(run: Run, served: FakeNode) -> None:
    served.transfer_facts = [Explained(TRACE).to_json()]
    (told,) = json.loads(run("--json", "why", "--count", "3").out)["transfers"]
    assert told["phases"] == [{"name": "last copies", "busy": 3.0, "share": 2.0, "times": 1}]
    assert told["peers"][0]["bytes"] == 900_000
    assert told["lines"][0] == told["headline"]
    assert served.calls[-1] == ("transfers", None, 3)


def test_why_of_a_link_never_moved_here_is_not_found(run: Run, served: FakeNode) -> None:
    done = run("why", str(LINK))
    assert done.code == EXIT_NOT_FOUND
    assert "No transfer of this link is remembered" in done.err
    assert "next: " in done.err


def test_why_where_nothing_was_moved_yet_is_no_error(run: Run, served: FakeNode) -> None:
    done = run("why")
    assert (done.code, done.out) == (0, "")
    assert "no transfer" in done.err


@pytest.mark.parametrize("arguments", [("why", "nonsense"), ("why", "--count", "0")])
def test_why_refuses_what_makes_no_sense(
    run: Run, served: FakeNode, arguments: tuple[str, ...]
) -> None:
    assert run(*arguments).code == EXIT_USAGE


def test_why_needs_no_running_node_and_no_network(
    run: Run, home, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(home, env={})
    config.paths.mesh_file.touch()

    async def remember() -> None:
        async with open_store(config.paths.data_dir, quota=None, min_free=0) as store:
            log = TraceLog(store.key_value(TRACES))
            await log.keep(TRACE)
            await log.keep(replace(TRACE, name="newer", began=1.9e9, root=b"\x55" * 32))

    trio.run(remember)

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a node was started")

    monkeypatch.setattr("meshnode.cli.embedded.open_node", no_network)
    done = run("why")
    assert "put newer: weak" in done.out
    assert "starting one" not in done.err
    assert "put film" in run("why", str(LINK)).out
    missing = run("--json", "why", str(Link(b"\x66" * 32)))
    assert missing.code == EXIT_NOT_FOUND
    assert json.loads(missing.out)["error"]["code"] == "not_found"
