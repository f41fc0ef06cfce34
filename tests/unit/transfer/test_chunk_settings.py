"""Each key of [performance.chunks] takes effect: these fail when a key is ignored."""

from __future__ import annotations

import pytest
import trio
from meshnode.errors import TransferError
from meshnode.node.content import FileManifest, Link, open_root
from meshnode.node.transfer import PutOptions
from trio.testing import MockClock


async def _put(mesh, make_file, size: int = 2_000_000) -> Link:
    report = await mesh.putter().put([make_file(size)])
    assert report.outcome == "stored", report
    link = report.sources[0].link
    assert link is not None
    mesh.exchange.started.clear()
    mesh.exchange.most_in_flight = 0
    return link


def _chunks_in_order(mesh, link: Link) -> list[bytes]:
    manifest = open_root(link, mesh.dht.manifests[link.digest])
    assert isinstance(manifest, FileManifest)
    return [ref.digest for ref in manifest.chunks]


@pytest.mark.parametrize("limit", [2, 5])
async def test_so_many_chunks_are_in_flight_on_a_get(
    mesh, make_file, tmp_path, autojump_clock: MockClock, limit: int
) -> None:
    for _ in range(3):
        mesh.add()
    link = await _put(mesh, make_file)
    mesh.configure(max_concurrent_retrievals=limit)
    await mesh.getter().get(link, tmp_path / "out")
    assert mesh.exchange.most_in_flight == limit


async def test_automatic_concurrency_grows_on_a_long_link(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(latency=0.3)
    put = await mesh.putter().put([make_file(30_000_000)], PutOptions(chunker="fixed"))
    link = put.sources[0].link
    mesh.exchange.most_in_flight = 0
    mesh.configure(max_concurrent_retrievals="auto")
    report = await mesh.getter().get(link, tmp_path / "out")
    assert mesh.exchange.most_in_flight > 8
    mesh.configure(max_concurrent_retrievals=4)
    fixed = await mesh.getter().get(link, tmp_path / "fixed")
    assert report.seconds < fixed.seconds


async def test_automatic_concurrency_shrinks_when_chunks_time_out(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    first, _ = mesh.add(), mesh.add()
    link = await _put(mesh, make_file, 2_000_000)
    first.rate = 2000.0  # a chunk takes half a minute
    mesh.configure(max_concurrent_retrievals="auto", prefer_fast_peers=False, chunk_timeout_secs=3)
    await mesh.getter().get(link, tmp_path / "out")
    depths = mesh.exchange.in_flight_when_started
    assert 2 <= max(depths[-10:]) <= max(depths) / 3


async def test_one_retrieval_at_a_time_goes_strictly_in_file_order(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        mesh.add()
    link = await _put(mesh, make_file)
    next(iter(mesh.peers.values())).fails_next = 2
    mesh.configure(max_concurrent_retrievals=1)
    await mesh.getter().get(link, tmp_path / "out")
    assert mesh.exchange.most_in_flight == 1
    assert list(dict.fromkeys(mesh.exchange.started)) == _chunks_in_order(mesh, link)


@pytest.mark.parametrize("limit", [1, 3])
async def test_so_many_chunks_are_in_flight_on_a_put(
    mesh, make_file, autojump_clock: MockClock, limit: int
) -> None:
    for _ in range(3):
        mesh.add()
    mesh.configure(max_concurrent_uploads=limit)
    await mesh.putter().put([make_file(2_000_000)])
    assert mesh.exchange.most_puts == limit


async def test_a_chunk_that_takes_longer_than_its_timeout_is_fetched_elsewhere(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    mesh.configure(prefer_fast_peers=False)
    slow, good = mesh.add("a"), mesh.add("b")
    link = await _put(mesh, make_file)
    slow.rate = 2000.0  # a chunk of 64 KiB takes half a minute
    mesh.configure(chunk_timeout_secs=3)
    began = trio.current_time()
    report = await mesh.getter().get(link, tmp_path / "out")
    assert report.retries > 0
    assert set(report.bytes_from_peers) == {good.id}
    quick = trio.current_time() - began

    mesh.exchange.forget_statistics()
    mesh.configure(chunk_timeout_secs=1000)
    report = await mesh.getter().get(link, tmp_path / "out2")
    assert report.bytes_from_peers[slow.id] > 0
    assert quick < 10


async def test_a_chunk_no_peer_takes_in_time_is_placed_elsewhere(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.configure(chunk_timeout_secs=1)
    for zone in "abc":
        mesh.add(zone)
    slow = mesh.add("d", rate=2000.0)
    began = trio.current_time()
    report = await mesh.putter().put([make_file(1_000_000)])
    assert trio.current_time() - began < 8
    assert report.outcome == "stored"
    assert slow.puts == []
    assert report.sources[0].retries > 0


@pytest.mark.parametrize(("rounds", "survives"), [(0, False), (1, False), (4, True)])
async def test_a_lost_chunk_is_tried_again_for_so_many_rounds(
    mesh, make_file, tmp_path, autojump_clock: MockClock, rounds: int, survives: bool
) -> None:
    only = mesh.add()
    mesh.config = mesh.config.with_overrides({"storage.replication": 2})
    link = await _put(mesh, make_file, 20_000)
    mesh.configure(retry_failed_chunks=rounds)
    only.gets.clear()
    mesh.exchange.fail_gets = 3
    if survives:
        report = await mesh.getter().get(link, tmp_path / "out")
        assert report.retries == 3
    else:
        with pytest.raises(TransferError, match="could not be fetched"):
            await mesh.getter().get(link, tmp_path / "out")
        assert mesh.exchange.fail_gets == 3 - (rounds + 1)


async def test_fast_peers_are_preferred_unless_told_otherwise(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    fast, slow = mesh.add("a", rate=50e6), mesh.add("b", rate=1e6)
    link = await _put(mesh, make_file, 6_000_000)
    mesh.configure(max_concurrent_retrievals=2)
    await mesh.getter().get(link, tmp_path / "warm-up")
    preferring = await mesh.getter().get(link, tmp_path / "preferring")
    mesh.configure(prefer_fast_peers=False)
    evenly = await mesh.getter().get(link, tmp_path / "evenly")

    total = sum(preferring.bytes_from_peers.values())
    assert preferring.bytes_from_peers[fast.id] > 0.8 * total
    assert 0.4 * total < evenly.bytes_from_peers[slow.id] < 0.6 * total
    assert preferring.seconds < evenly.seconds


@pytest.mark.parametrize("timeout", [1.0, 4.0])
async def test_a_silent_peer_costs_the_response_timeout_and_no_more(
    mesh, make_file, tmp_path, autojump_clock: MockClock, timeout: float
) -> None:
    mesh.configure(prefer_fast_peers=False)
    frozen, _ = mesh.add("a"), mesh.add("b")
    link = await _put(mesh, make_file, 20_000)
    mesh.configure(peer_response_timeout_secs=timeout, chunk_timeout_secs=100)
    frozen.frozen = True
    mesh.exchange.forget_statistics()  # of a peer whose latency is known less is borne with
    report = await mesh.getter().get(link, tmp_path / "out")
    assert timeout <= report.seconds < timeout + 0.5


@pytest.mark.parametrize(("rounds", "outcome"), [(0, "weak"), (1, "weak"), (4, "stored")])
async def test_a_chunk_nobody_took_is_offered_again_for_so_many_rounds(
    mesh, make_file, autojump_clock: MockClock, rounds: int, outcome: str
) -> None:
    mesh.add(fails_next=3)
    mesh.config = mesh.config.with_overrides({"storage.replication": 2})
    mesh.configure(retry_failed_chunks=rounds, max_concurrent_uploads=1)
    report = await mesh.putter().put([make_file(20_000)])
    assert report.outcome == outcome


@pytest.mark.parametrize("timeout", [1.0, 4.0])
async def test_a_silent_member_costs_a_put_the_response_timeout_and_no_more(
    mesh, make_file, autojump_clock: MockClock, timeout: float
) -> None:
    mesh.config = mesh.config.with_overrides({"storage.replication": 2})
    mesh.configure(peer_response_timeout_secs=timeout, chunk_timeout_secs=100)
    mesh.add("far", frozen=True)  # its zone makes it the first choice for every chunk
    mesh.add("default")
    report = await mesh.putter().put([make_file(20_000)])
    assert report.outcome == "stored"
    assert timeout <= report.sources[0].seconds < 2.5 * timeout
