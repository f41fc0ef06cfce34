"""Put and get between real nodes on a simulated network, with what can go wrong there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from meshnode.errors import NotFoundError, TransferError
from meshnode.node.content import Link
from meshnode.node.transport.sim import SimLink
from trio.testing import MockClock


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(random.Random(5).randbytes(1_500_000))
    return path


async def test_a_file_put_on_one_node_comes_out_of_every_other(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "a", "b"]) as mesh:
        report = await mesh.nodes[0].putter.put([source])
        assert report.outcome == "stored", report
        assert report.warnings == ()
        link = report.sources[0].link
        for number, node in enumerate(mesh.nodes[1:]):
            await node.getter.get(link, tmp_path / f"out{number}")
            assert (tmp_path / f"out{number}").read_bytes() == source.read_bytes()
        for digest, peers in report.sources[0].placements.items():
            holders = {node.peer for node in mesh.holders(digest)}
            assert holders == {mesh.nodes[0].peer, *peers}
            assert {node.zone for node in mesh.holders(digest)} == {"a", "b", "c"}


async def test_content_survives_the_publisher_and_one_more_node(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d", "e"]) as mesh:
        link = (await mesh.nodes[0].putter.put([source])).sources[0].link
        mesh.network.kill(mesh.nodes[0].peer)
        mesh.network.kill(mesh.nodes[1].peer)
        await mesh.nodes[4].getter.get(link, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == source.read_bytes()


async def test_a_holder_killed_in_the_middle_of_a_get_is_replaced(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    # The reader holds two thirds itself: lines so slow that the rest takes three times the sleep.
    async with open_mesh(["a", "b", "c", "d"], bandwidth=2.5e5) as mesh:
        link = (await mesh.nodes[0].putter.put([source])).sources[0].link
        done = trio.Event()

        async def get() -> None:
            await mesh.nodes[3].getter.get(link, tmp_path / "out")
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            await trio.sleep(0.2)
            assert not done.is_set()
            mesh.network.kill(mesh.nodes[0].peer)
        assert (tmp_path / "out").read_bytes() == source.read_bytes()


async def test_a_frozen_holder_costs_its_deadline_and_not_the_file(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d"]) as mesh:
        link = (await mesh.nodes[0].putter.put([source])).sources[0].link
        mesh.network.freeze(mesh.nodes[0].peer)
        began = trio.current_time()
        await mesh.nodes[3].getter.get(link, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == source.read_bytes()
        assert trio.current_time() - began < 20


async def test_a_member_that_dies_during_a_put_is_replaced(
    open_mesh, source, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d", "e"], bandwidth=2e6) as mesh:
        reports = []

        async def put() -> None:
            reports.append(await mesh.nodes[0].putter.put([source]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await trio.sleep(0.2)
            assert not reports
            mesh.network.kill(mesh.nodes[2].peer)
        report = reports[0]
        assert report.outcome == "stored", report
        assert mesh.nodes[2].peer not in report.sources[0].peers


async def test_a_holder_whose_disk_rots_is_noticed_and_another_delivers(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d"]) as mesh:
        report = await mesh.nodes[0].putter.put([source])
        for digest in report.sources[0].placements:
            for node in mesh.holders(digest)[:-1]:
                data = node.store._chunks[digest]
                node.store._chunks[digest] = bytes([data[0] ^ 1]) + data[1:]
        got = await mesh.nodes[3].getter.get(report.sources[0].link, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == source.read_bytes()
        assert got.retries > 0


async def test_the_faster_of_two_links_carries_more(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d"]) as mesh:
        report = await mesh.nodes[0].putter.put([source])
        digests = report.sources[0].placements
        for digest in digests:  # both others hold everything, the publisher leaves
            data = mesh.nodes[0].store._chunks[digest]
            for node in mesh.nodes[1:3]:
                await node.store.put([(digest, data)])
                await node.dht.announce([(digest, len(data))])
        asking = mesh.nodes[3]
        await asking.store.delete(list(digests))
        mesh.network.kill(mesh.nodes[0].peer)
        slow, fast = mesh.nodes[1].peer, mesh.nodes[2].peer
        mesh.network.set_link(asking.peer, slow, SimLink(latency=0.05, bandwidth=0.3e6))
        mesh.network.set_link(asking.peer, fast, SimLink(latency=0.005, bandwidth=5e6))
        got = await asking.getter.get(report.sources[0].link, tmp_path / "out")
        again = await asking.getter.get(report.sources[0].link, tmp_path / "again")
        assert again.bytes_from_peers[fast] > 0.7 * sum(again.bytes_from_peers.values())
        assert again.seconds <= got.seconds


async def test_a_chunk_everybody_deleted_is_not_found_and_the_others_are_kept(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d"]) as mesh:
        report = await mesh.nodes[0].putter.put([source])
        lost = next(d for d in report.sources[0].placements if d != report.sources[0].link.digest)
        for node in mesh.nodes:
            await node.store.delete([lost])
        with pytest.raises(NotFoundError, match="could not be fetched") as caught:
            await mesh.nodes[3].getter.get(report.sources[0].link, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "are kept in" in caught.value.hint


async def test_a_cut_off_node_says_that_nobody_is_reachable(
    open_mesh, source, tmp_path, autojump_clock: MockClock
) -> None:
    async with open_mesh(["a", "b", "c", "d"]) as mesh:
        report = await mesh.nodes[0].putter.put([source])
        for node in mesh.nodes[:3]:
            mesh.network.kill(node.peer)
        await trio.sleep(1)
        asking = mesh.nodes[3]  # its DHT keeps the manifest, as everybody's does in a small mesh
        await asking.store.delete(list(report.sources[0].placements))
        with pytest.raises(TransferError, match="reachable"):
            await asking.getter.get(report.sources[0].link, tmp_path / "out")
        with pytest.raises(NotFoundError, match="no other member"):
            await asking.getter.get(Link(bytes(32), bytes(32)), tmp_path / "out")


async def test_a_folder_travels_whole_and_can_be_streamed(
    open_mesh, tmp_path, autojump_clock: MockClock
) -> None:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    rng = random.Random(8)
    for number in range(100):
        (root / "sub" / str(number)).write_bytes(rng.randbytes(rng.randrange(5000)))
    (root / "big").write_bytes(rng.randbytes(600_000))
    async with open_mesh(["a", "b", "c"]) as mesh:
        report = await mesh.nodes[0].putter.put([root])
        link = report.sources[0].link
        mesh.network.kill(mesh.nodes[0].peer)
        getter = mesh.nodes[2].getter
        await getter.get(link, tmp_path / "out")
        for number in range(100):
            name = Path("sub") / str(number)
            assert (tmp_path / "out" / name).read_bytes() == (root / name).read_bytes()
        async with getter.stream(link, b"big", 1000, 300_000) as parts:
            streamed = b"".join([part async for part in parts])
        assert streamed == (root / "big").read_bytes()[1000:301_000]
