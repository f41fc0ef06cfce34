"""Meshes whose members all know each other: no lookups, and right when members come and go."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import trio
from blake3 import blake3
from meshnode.dht import DhtSettings
from meshnode.dht.keyspace import chunk_key
from meshnode.dht.peer_id import PeerId
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

K = 8
SETTINGS = DhtSettings(k=K, map_members=40, map_round=10.0, map_refresh=300.0)
HASTY = DhtSettings(k=K, map_members=40, map_round=5.0, map_refresh=60.0)


def chunks(count: int, seed: int = 3) -> list[tuple[bytes, int]]:
    rng = random.Random(seed)
    return [(rng.randbytes(32), 7) for _ in range(count)]


def manifest(seed: int = 4) -> tuple[bytes, bytes]:
    value = random.Random(seed).randbytes(500)
    return blake3(value).digest(), value


def believers(mesh: Any, peer: PeerId) -> int:
    """How many others count `peer` as a member."""
    others = [node for node in mesh.nodes if node.peer != peer]
    return sum(peer in node.dht._gossip.map.members for node in others)


def modes(mesh: Any) -> set[int]:
    return {node.dht.stats()["full_map"] for node in mesh.nodes}


def asked_for_charts(mesh: Any) -> int:
    return sum(node.dht.stats().get("chart_requests", 0) for node in mesh.nodes)


async def wait_until(condition: Callable[[], bool], *, within: float) -> None:
    deadline = trio.current_time() + within
    while not condition():
        assert trio.current_time() < deadline
        await trio.sleep(1)


async def test_a_thousand_keys_go_to_the_true_nearest_without_a_question(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=SETTINGS, full_map=True) as mesh:
        await mesh.populate(30)
        assert modes(mesh) == {1}
        assert all(node.dht.stats()["members"] == 30 for node in mesh.nodes)
        writer, reader, keys = mesh.nodes[4], mesh.nodes[20], chunks(1000)
        before = writer.dht.stats()["rpcs_sent"]
        report = await writer.dht.announce(keys)
        assert report.weakest >= K - 1
        assert writer.dht.stats()["rpcs_sent"] - before <= 1.5 * 29
        for digest, _ in keys[:100]:
            for peer in mesh.nearest(chunk_key(digest), K - 1, without=writer):
                node = next(node for node in mesh.nodes if node.peer == peer)
                holders = node.dht._chunks.holders(digest, 0.0)
                assert [record.peer for record in holders] == [writer.peer]
        found = await reader.dht.find_chunks([digest for digest, _ in keys])
        assert all([r.peer for r in records] == [writer.peer] for records in found.values())
        assert asked_for_charts(mesh) == 0


async def test_everybody_soon_knows_who_comes_and_who_goes(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=SETTINGS, full_map=True) as mesh:
        await mesh.populate(25)
        newcomer = await mesh.add()
        await trio.sleep(3)
        assert believers(mesh, newcomer.peer) >= 18
        assert newcomer.dht.stats()["full_map"] == 1
        assert newcomer.dht.stats()["members"] == 26
        await wait_until(lambda: believers(mesh, newcomer.peer) == 25, within=60)

        await mesh.stop(newcomer)
        await trio.sleep(2)
        assert believers(mesh, newcomer.peer) <= 5
        await wait_until(lambda: not believers(mesh, newcomer.peer), within=60)

        again = await mesh.add(peer=newcomer.peer, backend=newcomer.backend)
        await wait_until(lambda: believers(mesh, again.peer) == 25, within=60)

        mesh.kill(again)
        await wait_until(lambda: not believers(mesh, again.peer), within=300)
        late = await mesh.add()
        await trio.sleep(30)
        assert again.peer not in late.dht._gossip.map.members
        assert late.dht.stats()["members"] == 26


async def test_the_mesh_grows_too_large_for_a_map_and_shrinks_again_and_loses_no_record(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    settings = replace(HASTY, map_members=24)
    async with mesh_of(0, settings=settings, full_map=True) as mesh:
        await mesh.populate(20)
        assert modes(mesh) == {1}
        writer = mesh.nodes[0]
        (digest, value), small, large = manifest(), chunks(100, seed=11), chunks(100, seed=12)
        await writer.dht.announce(small)
        await writer.dht.put_manifest(digest, value)

        assert asked_for_charts(mesh) == 0
        while len(mesh.nodes) < 30:
            await mesh.add()
        await wait_until(lambda: modes(mesh) == {0}, within=120)
        reader = mesh.nodes[-1]
        assert all((await reader.dht.find_chunks([key for key, _ in small])).values())
        assert await mesh.nodes[-2].dht.get_manifest(digest) == value
        assert (await writer.dht.announce(large)).weakest >= K - 2
        assert asked_for_charts(mesh) > 0

        for leaver in mesh.nodes[14:]:
            await mesh.stop(leaver)
        await wait_until(lambda: modes(mesh) == {1}, within=1200)
        assert all(node.dht.stats()["members"] == 14 for node in mesh.nodes)
        before = asked_for_charts(mesh)
        for reader in (mesh.nodes[7], mesh.nodes[13]):
            found = await reader.dht.find_chunks([key for key, _ in [*small, *large]])
            assert all(found.values())
        assert await mesh.nodes[9].dht.get_manifest(digest) == value
        assert asked_for_charts(mesh) == before


async def test_a_restarted_node_has_its_map_within_two_seconds_though_its_bootstrap_peer_is_gone(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=HASTY, full_map=True, latency=0.03) as mesh:
        await mesh.populate(20)
        first, node = mesh.nodes[0], mesh.nodes[5]
        await trio.sleep(30)
        rtts = {entry.peer: entry.rtt for entry in node.dht.peers()}
        await mesh.stop(node)
        await mesh.stop(first)
        for dead in mesh.nodes[:6]:
            mesh.kill(dead)
        await trio.sleep(400)
        again = await mesh.add(backend=node.backend, peer=node.peer, bootstrap=False)
        restored = {entry.peer: entry.rtt for entry in again.dht.peers()}
        assert restored == {peer: rtt for peer, rtt in rtts.items() if peer in restored}
        await trio.sleep(2)
        live = {other.peer for other in mesh.nodes if other is not again}
        assert again.dht.stats()["full_map"] == 1
        assert live <= again.dht._gossip.map.members
        keys = chunks(50)
        assert (await again.dht.announce(keys)).weakest >= K - 1


async def test_a_mesh_works_when_some_members_sign_nothing(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=SETTINGS, full_map=True) as mesh:
        old = await mesh.add(peer=PeerId.from_ed25519(b"\7" * 32))
        await trio.sleep(20)
        assert "full_map" not in old.dht.stats()
        assert modes_of_signing(mesh) == {1}
        report = await mesh.nodes[2].dht.announce(chunks(20))
        assert old.peer in report.asked
        assert report.weakest == 6
        assert all((await old.dht.find_chunks([d for d, _ in chunks(20)])).values())
        await trio.sleep(600)
        assert {e.peer for e in mesh.nodes[1].dht.peers()} >= {old.peer}


def modes_of_signing(mesh: Any) -> set[int]:
    stats = [node.dht.stats() for node in mesh.nodes]
    return {one["full_map"] for one in stats if "full_map" in one}


async def test_two_halves_that_lost_each_other_are_one_mesh_again_after_healing(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=HASTY, full_map=True) as mesh:
        await mesh.populate(16)
        peers = [node.peer for node in mesh.nodes]
        mesh.network.partition(peers[:8], peers[8:])
        await trio.sleep(300)
        assert believers(mesh, peers[0]) == 7
        assert believers(mesh, peers[12]) == 7
        mesh.network.heal()
        await wait_until(lambda: all(believers(mesh, peer) == 15 for peer in peers), within=400)
