from __future__ import annotations

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.dht.trace import Traces
from meshnode.errors import PeerError, PeerRefusedError
from trio.testing import MockClock

PEERS = [PeerId.from_ed25519(i.to_bytes(32, "big")) for i in range(200)]


def traces() -> Traces:
    return Traces(lambda: 1000.0 + trio.current_time())


async def test_a_report_says_who_was_asked_what_came_of_it_and_how_long_it_took(
    autojump_clock: MockClock,
) -> None:
    kept = traces()
    trace = kept.begin("announce", b"key", 7)
    with trace.asking(PEERS[0], hop=2, path=1, keys=7) as request:
        await trio.sleep(0.5)
        request.end("stored")
    with pytest.raises(PeerError), trace.asking(PEERS[1]):
        raise PeerError("It is gone.")
    with pytest.raises(PeerRefusedError), trace.asking(PEERS[2]):
        raise PeerRefusedError("No.", reason="full")
    with trace.asking(PEERS[3]):
        await trio.sleep(0.25)
    with trace.asking(PEERS[4]):
        await trio.sleep(0.25)
        report = trace.close(found=7, hops=2, paths=3)
    outcomes = [(entry.peer, entry.outcome, entry.reason) for entry in report.peers]
    assert outcomes == [
        (PEERS[0], "stored", ""),
        (PEERS[1], "failed", "It is gone."),
        (PEERS[2], "refused", "full"),
        (PEERS[3], "answered", ""),
        (PEERS[4], "unanswered", ""),
    ]
    assert [entry.seconds for entry in report.peers] == pytest.approx([0.5, 0, 0, 0.25, 0.25])
    assert (report.peers[0].hop, report.peers[0].path, report.peers[0].keys) == (2, 1, 7)
    assert (report.kind, report.key, report.keys, report.found) == ("announce", b"key", 7, 7)
    assert (report.asked, report.hops, report.paths) == (5, 2, 3)
    assert report.seconds == pytest.approx(1.0)
    assert report.began == pytest.approx(1000.0, abs=1)
    assert report.count("failed") == 1
    assert kept.recent() == [report]


async def test_long_queries_keep_what_went_wrong(autojump_clock: MockClock) -> None:
    trace = traces().begin("find_chunks", b"key")
    for number, peer in enumerate(PEERS):
        with trace.asking(peer) as request:
            request.end("refused" if number % 10 == 9 else "answered", "x" * 1000)
    report = trace.close(found=1)
    assert report.asked == 200
    assert len(report.peers) == 64
    assert report.count("refused") == 20
    assert max(len(entry.reason) for entry in report.peers) <= 160


async def test_what_the_dht_does_by_itself_does_not_crowd_out_what_callers_asked(
    autojump_clock: MockClock,
) -> None:
    kept = traces()
    kept.begin("get_manifest", b"mine").close(found=1)
    for number in range(500):
        kept.begin("refresh", number.to_bytes(2, "big"), upkeep=True).close(found=0)
        await trio.sleep(0.001)
    assert [report.key for report in kept.recent() if report.kind == "get_manifest"] == [b"mine"]
    assert len(kept.recent()) < 100
    for number in range(500):
        kept.begin("find_chunks", number.to_bytes(2, "big")).close(found=0)
        await trio.sleep(0.001)
    recent = kept.recent()
    assert recent[-1].key == (499).to_bytes(2, "big")
    assert len(recent) < 200
