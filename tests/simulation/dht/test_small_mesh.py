"""A mesh smaller than k: everybody is responsible for everything."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from blake3 import blake3
from meshnode.dht import MAX_VALUE_BYTES, DhtSettings, MemoryBackend
from meshnode.dht.backend import RowKind
from meshnode.errors import IntegrityError, RefusedError, StoreError, UsageError
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]


def chunks(count: int, seed: int = 3) -> list[tuple[bytes, int]]:
    rng = random.Random(seed)
    return [(rng.randbytes(32), 1000 + i) for i in range(count)]


def manifest(seed: int = 4, size: int = 3000) -> tuple[bytes, bytes]:
    value = random.Random(seed).randbytes(size)
    return blake3(value).digest(), value


async def test_a_joining_node_and_everybody_else_know_each_other(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        for node in mesh.nodes:
            known = {entry.peer for entry in node.dht.peers()}
            assert known == {other.peer for other in mesh.nodes} - {node.peer}
            assert all(entry.connected and entry.addresses for entry in node.dht.peers())
            assert all(entry.rtt is not None and entry.rtt > 0 for entry in node.dht.peers())


async def test_a_thousand_keys_cost_one_request_per_peer_and_one_round_trip(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5, latency=0.05) as mesh:
        node = mesh.nodes[1]
        await node.dht.announce(chunks(1))  # streams of the records protocol are open now
        sent, began = node.dht.stats()["rpcs_sent"], trio.current_time()
        report = await node.dht.announce(chunks(1000))
        assert node.dht.stats()["rpcs_sent"] - sent == 4
        assert trio.current_time() - began < 0.15
        assert report.weakest == 4
        assert not report.failed
        assert not report.refused
        assert set(report.asked) == {other.peer for other in mesh.nodes} - {node.peer}


async def test_every_node_finds_every_holder(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5, settings=DhtSettings(zone="cellar")) as mesh:
        keys = chunks(200)
        for node in mesh.nodes[1:4]:
            await node.dht.announce(keys)
        holders = {node.peer for node in mesh.nodes[1:4]}
        for node in mesh.nodes:
            found = await node.dht.find_chunks([digest for digest, _ in keys])
            for digest, size in keys:
                assert {record.peer for record in found[digest]} == holders
                assert {record.size for record in found[digest]} == {size}
                assert {record.zone for record in found[digest]} == {"cellar"}


async def test_what_nobody_holds_is_found_nowhere(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        assert await mesh.nodes[0].dht.find_chunks([b"x" * 32]) == {b"x" * 32: []}
        assert await mesh.nodes[0].dht.get_manifest(b"x" * 32) is None


async def test_enough_local_records_need_no_request(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        keys = chunks(10)
        for node in mesh.nodes[1:4]:
            await node.dht.announce(keys)
        asker = mesh.nodes[0]
        sent = asker.dht.stats()["rpcs_sent"]
        await asker.dht.find_chunks([digest for digest, _ in keys])
        assert asker.dht.stats()["rpcs_sent"] == sent


async def test_withdrawn_chunks_are_no_longer_found(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        keys = chunks(20)
        await mesh.nodes[1].dht.announce(keys)
        await mesh.nodes[1].dht.withdraw([digest for digest, _ in keys[:5]])
        found = await mesh.nodes[2].dht.find_chunks([digest for digest, _ in keys])
        assert [bool(found[digest]) for digest, _ in keys] == [False] * 5 + [True] * 15


async def test_letting_go_is_immediate_here_and_known_elsewhere_once_told(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        node, (kept, gone, again) = mesh.nodes[1], chunks(3)
        digest, value = manifest()
        await node.dht.announce([kept, gone, again])
        await node.dht.put_manifest(digest, value)
        node.dht.let_go([gone[0], again[0], digest])
        assert node.dht.stats()["own_chunks"] == 1
        assert node.dht.stats()["own_manifests"] == 0
        found = await mesh.nodes[2].dht.find_chunks([gone[0]])
        assert [record.peer for record in found[gone[0]]] == [node.peer]
        await node.dht.announce([again])
        await node.dht.tell_withdrawn([gone[0], again[0], digest])
        found = await mesh.nodes[2].dht.find_chunks([gone[0], again[0]])
        assert not found[gone[0]]
        assert [record.peer for record in found[again[0]]] == [node.peer]
        with pytest.raises(UsageError):
            node.dht.let_go([kept[0], b"short"])
        assert node.dht.stats()["own_chunks"] == 2


async def test_what_is_let_go_during_its_announcement_is_announced_no_further(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2, latency=0.05) as mesh:
        node, keys = mesh.nodes[1], chunks(10_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.dht.announce, keys)
            await trio.sleep(0.01)
            node.dht.let_go([digest for digest, _ in keys])
        assert mesh.nodes[0].dht.stats()["chunk_records"] <= 4096


async def test_a_manifest_is_stored_on_all_others_and_read_back(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        digest, value = manifest(size=MAX_VALUE_BYTES)
        report = await mesh.nodes[1].dht.put_manifest(digest, value)
        assert set(report.stored_on) == {n.peer for n in mesh.nodes} - {mesh.nodes[1].peer}
        for node in mesh.nodes:
            assert await node.dht.get_manifest(digest) == value


async def test_a_manifest_is_found_by_a_node_that_came_after_its_publisher_left(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        digest, value = manifest()
        publisher = mesh.nodes[1]
        await publisher.dht.put_manifest(digest, value)
        await mesh.stop(publisher)
        newcomer = await mesh.add()
        assert await newcomer.dht.get_manifest(digest) == value


async def test_manifests_that_are_too_large_or_misnamed_are_refused(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2) as mesh:
        digest, value = manifest(size=MAX_VALUE_BYTES + 1)
        with pytest.raises(RefusedError):
            await mesh.nodes[0].dht.put_manifest(digest, value)
        with pytest.raises(IntegrityError):
            await mesh.nodes[0].dht.put_manifest(b"\0" * 32, b"other")
        with pytest.raises(UsageError):
            await mesh.nodes[0].dht.announce([(b"short", 1)])
        with pytest.raises(UsageError):
            await mesh.nodes[0].dht.find_chunks([b""])
        with pytest.raises(UsageError):
            await mesh.add(settings=DhtSettings(zone="z" * 65))


async def test_a_node_that_joins_later_is_offered_what_was_announced_before(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        keys = chunks(5000)
        digest, value = manifest()
        await mesh.nodes[1].dht.announce(keys)
        await mesh.nodes[1].dht.put_manifest(digest, value)
        newcomer = await mesh.add()
        await trio.sleep(10)
        assert newcomer.dht.stats()["chunk_records"] == 5000
        assert newcomer.dht.stats()["manifests"] == 1


async def test_a_killed_peer_is_reported_and_then_not_waited_for(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        victim = mesh.nodes[-1]
        mesh.kill(victim)
        report = await mesh.nodes[1].dht.announce(chunks(50))
        assert report.weakest == 3
        assert [failure.peer for failure in report.failed] == [victim.peer]
        began = trio.current_time()
        report = await mesh.nodes[1].dht.announce(chunks(50, seed=9))
        assert trio.current_time() - began < 0.1
        assert report.weakest == 3
        assert victim.peer in {failure.peer for failure in report.failed}


async def test_a_restarted_node_needs_no_bootstrap_peer(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        node = mesh.nodes[2]
        keys = chunks(30)
        digest, value = manifest()
        await node.dht.announce(keys)
        await mesh.nodes[3].dht.put_manifest(digest, value)
        await mesh.stop(node)
        again = await mesh.add(backend=node.backend, peer=node.peer, bootstrap=False)
        await trio.sleep(2)
        assert {e.peer for e in again.dht.peers() if e.connected} == {
            other.peer for other in mesh.nodes if other is not again
        }
        assert again.dht.stats()["own_chunks"] == 30
        assert await again.dht.get_manifest(digest) == value


async def test_the_first_node_comes_back_elsewhere_after_a_sudden_end_and_all_have_it_again(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    """Nobody knows where it listens now, and it was told of nobody when it was made."""
    async with mesh_of(4) as mesh:
        first, *others = mesh.nodes
        on_disk = MemoryBackend()
        on_disk.rows.update(first.backend.rows)
        mesh.kill(first)
        again = await mesh.add(backend=on_disk, peer=first.peer, bootstrap=False)
        assert again.host.addresses() != first.host.addresses()
        await trio.sleep(5)
        assert again.host.connected_peers() == {node.peer for node in others}


async def test_after_a_sudden_end_peers_are_sought_where_they_listened_last(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2) as mesh:
        first, moves = mesh.nodes
        mesh.kill(moves)
        moved = await mesh.add(peer=moves.peer)
        await trio.sleep(5)
        on_disk = MemoryBackend()
        on_disk.rows.update(first.backend.rows)
        mesh.kill(first)
        again = await mesh.add(backend=on_disk, peer=first.peer, bootstrap=False)
        await trio.sleep(5)
        assert again.host.connected_peers() == {moved.peer}


async def test_a_node_without_peers_keeps_what_it_announces_and_tells_later(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1) as mesh:
        alone = mesh.nodes[0]
        report = await alone.dht.announce(chunks(3))
        assert report.weakest == 0
        other = await mesh.add()
        await trio.sleep(5)
        assert other.dht.stats()["chunk_records"] == 3


async def test_records_outlive_a_day_only_while_their_holder_does(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3, settings=DhtSettings(republish=3600, record_ttl=7200)) as mesh:
        stays, leaves, reader = mesh.nodes[1], mesh.nodes[2], mesh.nodes[0]
        digest, value = manifest()
        await stays.dht.announce([(b"s" * 32, 1)])
        await stays.dht.put_manifest(digest, value)
        await leaves.dht.announce([(b"l" * 32, 1)])
        await mesh.stop(leaves)
        await trio.sleep(4 * 3600)
        found = await reader.dht.find_chunks([b"s" * 32, b"l" * 32])
        assert [record.peer for record in found[b"s" * 32]] == [stays.peer]
        assert found[b"l" * 32] == []
        assert reader.dht.stats()["records_expired"] == 1
        assert reader.dht.stats()["manifests"] == 1


async def test_a_failing_backend_stops_neither_serving_nor_finding(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    class Broken(MemoryBackend):
        broken = True

        async def save(self, rows: Any) -> None:
            if self.broken:
                raise StoreError("The disk is gone.")
            await super().save(rows)

    async with mesh_of(2) as mesh:
        backend = Broken()
        node = await mesh.add(backend=backend)
        await mesh.nodes[0].dht.announce(chunks(5))
        await trio.sleep(10)
        assert node.dht.stats()["flush_failures"] > 0
        assert node.dht.stats()["chunk_records"] == 5
        with pytest.raises(StoreError):
            await node.dht.announce(chunks(1))
        backend.broken = False
        await trio.sleep(10)
        (row,) = [row for row in backend.rows.values() if row[0] == RowKind.CHUNKS]
        assert all(digest in row[3] for digest, _ in chunks(5))
