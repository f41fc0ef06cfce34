"""What `meshnode why` says about transfers that went well, slowly, and wrong."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.errors import StoreError
from meshnode.node.store import open_store
from meshnode.node.transfer.explain import Explained, explain
from meshnode.node.transfer.trace import Note, PeerPart, Phase, Trace
from meshnode.node.transfer.trace_log import TraceLog
from trio.testing import MockClock

FAST, SLOW, DEAD = (PeerId.from_ed25519(bytes([n]) * 32) for n in range(3))
ROOT = b"r" * 32

PUT = Trace(
    kind="put",
    name="film.mkv",
    root=ROOT,
    began=1.8e9,
    seconds=10.0,
    outcome="stored",
    size=1_000_000_000,
    phases=(
        Phase("reading", 2.0, 0.5, 100),
        Phase("storing", 1.0, 0.2, 100),
        Phase("waiting for room", 6.0, 3.0, 50),
        Phase("peers", 9.5, 5.0, 950),
        Phase("last copies", 1.0, 0.5, 1),
    ),
    peers=(
        PeerPart(FAST, 900, 900_000_000, 9.0),
        PeerPart(SLOW, 50, 50_000_000, 9.0, hedged=2),
        PeerPart(DEAD, 4, 0, 0.1, failures=4, gave_up="it is unreachable"),
    ),
    notes=(Note(1.5, "it is unreachable", DEAD),),
    counts={"chunks": 950, "new_chunks": 950, "retries": 4, "hedges": 2},
)
GET = replace(
    PUT,
    kind="get",
    outcome="done",
    phases=(Phase("finding", 1.0, 0.5, 2), Phase("peers", 9.0, 8.0, 950)),
)


def told(trace: Trace, **names: str) -> str:
    return "\n".join(explain(trace, {FAST: "nas", SLOW: "attic", DEAD: "cellar"}))


def test_a_put_that_waited_for_a_slow_peer_says_so_and_names_it() -> None:
    text = told(PUT)
    assert "put film.mkv: stored, 1.0 GB in 10.0 s (100 MB/s)" in text
    assert "decided by the peers: 70 % of the time" in text
    assert f"attic ({SLOW.short}) being much slower" in text
    assert f"nas ({FAST.short}): took 900 MB in 9.00 s (100 MB/s)" in text
    assert "after 1.50 s: cellar" in text
    assert "See what holds up attic" in text
    assert "Look after cellar" in text


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([Phase("storing", 8.0, 4.0, 10)], "making chunks durable on this node's disk (80 %"),
        ([Phase("reading", 8.0, 4.0, 10)], "reading what was to be put"),
        ([Phase("sealing", 8.0, 4.0, 10)], "compressing, encrypting"),
        ([Phase("confirming", 5.0, 4.0, 10)], "questions to peers and to the DHT (50 %"),
        ([Phase("peers", 9.0, 4.0, 10)], "nothing in particular"),
    ],
)
def test_the_cause_of_a_put_is_where_its_time_went(phases: list[Phase], expected: str) -> None:
    assert expected in told(replace(PUT, phases=tuple(phases)))


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([Phase("resolving", 8.0, 7.0, 10)], "the search for the manifest"),
        ([Phase("checking and writing", 9.0, 4.0, 10)], "this node: checking"),
        ([Phase("waiting", 5.0, 4.0, 10)], "holders that failed or were busy: 50 %"),
        ([Phase("peers", 9.0, 4.0, 10)], "the peers: 90 %"),
    ],
)
def test_the_cause_of_a_get_is_where_its_time_went(phases: list[Phase], expected: str) -> None:
    assert expected in told(replace(GET, phases=tuple(phases)))


def test_an_interrupted_put_is_told_how_to_go_on() -> None:
    text = told(replace(PUT, outcome="interrupted", root=b""))
    assert "interrupted, after 10.0 s" in text
    assert "Put the same again within a day" in text


def test_a_failed_transfer_shows_its_error_and_what_to_do() -> None:
    text = told(replace(GET, outcome="failed", error="Nobody has it.", hint="Ask later."))
    assert "error: Nobody has it." in text
    assert "Ask later." in text


def test_false_bytes_are_told_with_the_peer_that_sent_them() -> None:
    liar = PeerPart(SLOW, 1, 0, 0.1, corrupt=1)
    assert "Check the disk and memory of attic" in told(replace(GET, peers=(liar,)))


def test_a_transfer_without_anything_is_explained_too() -> None:
    empty = Trace("stream", "", b"", 0.0, 0.0, "interrupted")
    assert explain(empty)[0] == "cat of a link: interrupted, after 0.00 s"


def test_of_many_notes_some_are_shown_and_the_others_counted() -> None:
    notes = tuple(Note(float(n), f"note {n}") for n in range(40))
    text = told(replace(PUT, notes=notes, lost_notes=5))
    assert "note 0" in text
    assert "note 39" in text
    assert "(33 more)" in text


def test_a_client_gets_the_numbers_and_the_words() -> None:
    shown = Explained(PUT).to_json()
    assert shown["phases"][0]["name"] == "reading"
    assert shown["headline"] == shown["lines"][0]
    assert shown["cid"].startswith("b")


async def test_the_last_transfers_are_remembered_across_restarts_and_older_ones_go(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 20
    monkeypatch.setattr("meshnode.node.transfer.trace_log.KEPT", kept)
    async with open_store(tmp_path, quota=None, min_free=0) as store:
        log = TraceLog(store.key_value("transfers"))
        for number in range(kept + 5):
            await log.keep(replace(PUT, began=1.8e9 + number, root=bytes([number % 2]) * 32))
        await log.keep(replace(PUT, began=1.8e9 + 7.5, more_roots=(ROOT,)))
    async with open_store(tmp_path, quota=None, min_free=0) as store:
        log = TraceLog(store.key_value("transfers"))
        newest = await log.latest(3)
        assert [trace.began for trace in newest] == [1.8e9 + kept + n for n in (4, 3, 2)]
        assert len(await log.latest(10_000)) == kept
        odd = await log.latest(10_000, b"\x01" * 32)
        assert {trace.root for trace in odd} == {b"\x01" * 32}
        assert [trace.began for trace in await log.latest(5, ROOT)] == [1.8e9 + 7.5]


async def test_a_trace_that_cannot_be_read_or_written_harms_nobody(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(tmp_path, quota=None, min_free=0) as store:
        table = store.key_value("transfers")
        await table.put(b"\xff" * 12, b"nonsense")
        log = TraceLog(table)
        await log.keep(PUT)
        assert await log.latest(5) == [PUT]

        async def fail(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise StoreError("the disk failed")

        monkeypatch.setattr(table, "note", fail)
        await log.keep(PUT)


async def test_a_put_leaves_a_trace_that_adds_up(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(rate=1e6)
    report = await mesh.putter().put([make_file(3_000_000)])
    (trace,) = mesh.traces
    assert (trace.kind, trace.outcome, trace.name) == ("put", "stored", "input.bin")
    assert trace.root == report.sources[0].link.digest
    assert trace.size == 3_000_000
    assert trace.seconds == pytest.approx(report.seconds)
    assert sum(part.nbytes for part in trace.peers) == report.sources[0].bytes_sent
    assert sum(phase.share for phase in trace.phases) <= trace.seconds + 1e-9
    assert trace.phase("peers").busy > 0.5 * trace.seconds
    assert {"reading", "sealing", "storing", "last copies", "confirming"} <= {
        phase.name for phase in trace.phases
    }


async def test_a_put_that_was_cut_short_leaves_its_trace(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(rate=3e5)
    with trio.move_on_after(1):
        await mesh.putter().put([make_file(6_000_000)])
    (trace,) = mesh.traces
    assert (trace.outcome, trace.root) == ("interrupted", b"")
    assert sum(part.nbytes for part in trace.peers) > 0


async def test_a_put_of_several_sources_can_be_asked_about_by_any_of_its_links(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add()
    files = [make_file(1000, f"f{n}", seed=n) for n in range(3)]
    report = await mesh.putter().put(files)
    (trace,) = mesh.traces
    assert all(trace.is_of(source.link.digest) for source in report.sources)
    assert trace.name == "f0 and 2 more"
    assert not trace.is_of(random.Random(1).randbytes(32))


async def test_what_peers_did_wrong_is_in_the_trace(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for zone in "ab":
        mesh.add(zone)
    full = mesh.add("c", refuses_puts="quota")
    await mesh.putter().put([make_file(1_000_000)])
    (trace,) = mesh.traces
    part = next(part for part in trace.peers if part.peer == full.id)
    assert part.gave_up
    assert part.nbytes == 0
    assert any(note.peer == full.id for note in trace.notes)
