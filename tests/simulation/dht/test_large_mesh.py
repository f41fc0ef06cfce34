"""Meshes larger than k, where nobody knows everybody; small k stands for large N."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from blake3 import blake3
from meshnode.dht import DhtSettings
from meshnode.dht.kad_wire import KadMessage, Kind
from meshnode.dht.keyspace import chunk_key, manifest_key
from meshnode.dht.peer_id import PeerId
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

K = 8


def holders_told_by(dht: Any, digest: bytes) -> set[PeerId]:
    """What one node alone would answer about a chunk."""
    request = KadMessage(Kind.GET_PROVIDERS, chunk_key(digest))
    answer = dht._server.answer_kad(PeerId(b"asker"), request)
    return {entry.peer for entry in answer.providers}


async def test_two_hundred_nodes_find_the_true_nearest_in_about_log_n_hops(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=DhtSettings(k=K)) as mesh:
        await mesh.populate(200)
        rng = random.Random(5)
        hops, found = [], 0
        for _ in range(20):
            node, key = rng.choice(mesh.nodes), rng.randbytes(32)
            result = await node.dht.find_closest(key)
            hops.append(result.hops)
            found += len(set(result.closest) & set(mesh.nearest(key, K, without=node)))
            assert result.asked <= 5 * K
        assert found >= 0.97 * 20 * K
        assert max(hops) <= math.log2(200 / K) + 1
        assert max(hops) >= 1

        # Nobody knows everybody, so the batch has to be charted; still a few requests per peer.
        writer, reader = mesh.nodes[17], mesh.nodes[171]
        assert len(writer.dht.peers()) < 120
        keys = [(rng.randbytes(32), 7) for _ in range(1000)]
        before = writer.dht.stats()
        report = await writer.dht.announce(keys)
        after = writer.dht.stats()
        charting = after["chart_requests"] - before.get("chart_requests", 0)
        assert charting <= 4 * 200 / K
        assert after["rpcs_sent"] - before["rpcs_sent"] <= 2 * len(report.asked) + charting
        assert len(report.asked) <= 199
        assert report.weakest >= K - 2

        right = total = 0
        for digest, _ in keys[:50]:
            for peer in mesh.nearest(chunk_key(digest), K, without=writer):
                server = next(n for n in mesh.nodes if n.peer == peer).dht
                total += 1
                right += writer.peer in holders_told_by(server, digest)
        assert right >= 0.9 * total

        answers = await reader.dht.find_chunks([digest for digest, _ in keys])
        assert all([r.peer for r in records] == [writer.peer] for records in answers.values())
        assert len(answers) == 1000

        addresses = await reader.dht.find_peer(mesh.nodes[60].peer)
        assert addresses == mesh.nodes[60].host.addresses()


async def test_thirty_nodes_keep_a_manifest_on_the_k_nearest_and_survive_losing_a_third(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(30, settings=DhtSettings(k=K)) as mesh:
        rng = random.Random(6)
        value = rng.randbytes(2000)
        digest = blake3(value).digest()
        keys = [(rng.randbytes(32), 7) for _ in range(300)]
        writer = mesh.nodes[10]
        report = await writer.dht.put_manifest(digest, value)
        right = mesh.nearest(manifest_key(digest), K, without=writer)
        assert len(set(report.stored_on) & set(right)) >= K - 1
        await writer.dht.announce(keys)

        survivors = [n for n in mesh.nodes if n is not writer]
        for victim in rng.sample(survivors, 10):
            mesh.kill(victim)
        reader = next(n for n in mesh.nodes if n is not writer)
        assert await reader.dht.get_manifest(digest) == value
        found = await reader.dht.find_chunks([d for d, _ in keys])
        assert all(found.values())
        # The dead leave the tables, and their records' places are taken by others.
        await trio.sleep(1800)
        alive = {n.peer for n in mesh.nodes}
        stale = [e for n in mesh.nodes for e in n.dht.peers() if e.peer not in alive]
        entries = sum(len(n.dht.peers()) for n in mesh.nodes)
        assert len(stale) < 0.1 * entries


async def test_frozen_peers_cost_no_operation_more_than_two_seconds(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=DhtSettings(k=K)) as mesh:
        await mesh.populate(50)
        rng = random.Random(7)
        value = rng.randbytes(2000)
        digest = blake3(value).digest()
        keys = [(rng.randbytes(32), 7) for _ in range(200)]
        writer, reader = mesh.nodes[3], mesh.nodes[4]
        await writer.dht.announce(keys)
        await writer.dht.put_manifest(digest, value)

        for victim in rng.sample(mesh.nodes[5:], 15):
            mesh.network.freeze(victim.peer)
        usual = 10 * 0.02

        async def timed(call: Callable[[], Any]) -> Any:
            began = trio.current_time()
            result = await call()
            assert trio.current_time() - began <= usual + 2.0
            return result

        assert await timed(lambda: reader.dht.get_manifest(digest)) == value
        found = await timed(lambda: reader.dht.find_chunks([d for d, _ in keys]))
        assert all(found.values())
        for node in (reader, writer):
            for _ in range(15):
                key = rng.randbytes(32)
                result = await timed(lambda node=node, key=key: node.dht.find_closest(key))
                assert result.closest
        report = await timed(lambda: writer.dht.announce([(rng.randbytes(32), 7)]))
        assert report.weakest >= 3


async def test_a_single_frozen_peer_in_a_small_mesh_is_waited_for_once_and_comes_back(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        node, frozen = mesh.nodes[1], mesh.nodes[4]
        mesh.network.freeze(frozen.peer)
        began = trio.current_time()
        report = await node.dht.announce([(b"a" * 32, 1)])
        assert trio.current_time() - began <= 2.1
        assert report.weakest == 3
        began = trio.current_time()
        await node.dht.announce([(b"b" * 32, 1)])
        assert trio.current_time() - began <= 0.1
        mesh.network.thaw(frozen.peer)
        await trio.sleep(1200)
        report = await node.dht.announce([(b"c" * 32, 1)])
        assert report.weakest == 4
