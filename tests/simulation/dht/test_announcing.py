"""Announcements are acknowledged per key, told again soon when too few took them, and reported."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from blake3 import blake3
from meshnode.dht import DhtSettings, MemoryBackend
from meshnode.dht.keyspace import chunk_key
from meshnode.dht.peer_id import PeerId
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]


def chunks(count: int, seed: int = 3) -> list[tuple[bytes, int]]:
    rng = random.Random(seed)
    return [(rng.randbytes(32), 1000 + i) for i in range(count)]


def told(mesh: Any, node: Any, digest: bytes) -> int:
    """How many others keep `node`'s record of a chunk."""
    return sum(other.dht._chunks.knows(node.peer, digest) for other in mesh.nodes)


async def test_what_nobody_took_is_told_minutes_later_and_not_at_the_next_repetition(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6) as mesh:
        node, keys = mesh.nodes[1], chunks(100)
        others = {other.peer for other in mesh.nodes} - {node.peer}
        mesh.network.partition({node.peer}, others)
        report = await node.dht.announce(keys)
        assert report.weakest == 0
        assert report.pending == node.dht.stats()["keys_pending"] == 100
        await trio.sleep(60)
        assert 50 <= node.dht.announce_lag <= 70
        assert node.dht.stats()["announce_lag_seconds"] == int(node.dht.announce_lag)
        mesh.network.heal()
        await trio.sleep(900)
        assert node.dht.stats()["keys_pending"] == 0
        assert node.dht.announce_lag == 0
        assert all(told(mesh, node, digest) >= 3 for digest, _ in keys)


async def test_keys_that_enough_peers_took_are_not_pending_and_cost_nothing_more(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        node = mesh.nodes[1]
        report = await node.dht.announce(chunks(50))
        assert report.pending == 0
        await trio.sleep(60)
        assert "keys_retold" not in node.dht.stats()


async def test_a_lone_node_has_its_keys_pending_until_somebody_comes(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1) as mesh:
        alone = mesh.nodes[0]
        assert (await alone.dht.announce(chunks(3))).pending == 3
        await trio.sleep(7200)
        assert alone.dht.announce_lag == pytest.approx(7200, abs=60)
        await mesh.add()
        await trio.sleep(30)
        assert alone.dht.stats()["keys_pending"] == 0


async def test_a_crash_in_the_middle_of_announcing_is_made_up_for_after_the_restart(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    """In a mesh where nobody meets everybody, so that offers to peers cannot stand in for it."""
    async with mesh_of(12, settings=DhtSettings(k=4)) as mesh:
        crashing = await mesh.add(backend=MemoryBackend())
        keys = chunks(200)
        others = {other.peer for other in mesh.nodes} - {crashing.peer}
        mesh.network.partition({crashing.peer}, others)
        with trio.move_on_after(0.5):
            await crashing.dht.announce(keys)
        saved = MemoryBackend()
        saved.rows = dict(crashing.backend.rows)
        mesh.kill(crashing)
        mesh.network.heal()
        again = await mesh.add(backend=saved, peer=crashing.peer)
        assert again.dht.stats()["keys_pending"] == 200
        # What peers are offered when they are met would hide the omission.
        again.dht._repeater._offered = {n.peer: trio.current_time() for n in mesh.nodes}
        await trio.sleep(60)
        assert again.dht.stats()["keys_pending"] == 0
        assert all(told(mesh, again, digest) >= 3 for digest, _ in keys)


async def test_what_is_let_go_is_told_no_more(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        node, (kept, gone) = mesh.nodes[1], chunks(2)
        mesh.network.partition({node.peer}, {mesh.nodes[0].peer, mesh.nodes[2].peer})
        await node.dht.announce([kept, gone])
        node.dht.let_go([gone[0]])
        assert node.dht.keys_pending == 1
        mesh.network.heal()
        await trio.sleep(900)
        assert told(mesh, node, kept[0]) == 2
        assert told(mesh, node, gone[0]) == 0


async def test_a_full_peer_gives_its_place_to_the_next_nearest(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(12, settings=DhtSettings(k=4)) as mesh:
        node, digest = mesh.nodes[1], b"f" * 32
        near = mesh.nearest(chunk_key(digest), 3, without=node)
        for other in mesh.nodes:
            if other.peer in near:
                # No room for anything of anybody.
                other.dht._chunks._settings = DhtSettings(max_records=0)
        report = await node.dht.announce([(digest, 1)])
        assert sum(report.refused.values()) >= 3
        assert set(report.refused) == {"far"} or set(report.refused) <= {"far", "peer_full"}
        assert report.weakest >= 3
        refusing = {e.peer for e in report.queries[0].peers if e.outcome == "refused"}
        assert refusing == set(near)
        (reason,) = {e.reason for e in report.queries[0].peers if e.outcome == "refused"}
        assert reason.startswith("1 ")


async def test_every_query_says_who_was_asked_who_failed_and_why(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6) as mesh:
        node, frozen, keys = mesh.nodes[1], mesh.nodes[5], chunks(10)
        value = b"manifest"
        digest = blake3(value).digest()
        mesh.network.freeze(frozen.peer)
        announced = (await node.dht.announce(keys)).queries[0]
        assert announced.kind == "announce"
        assert announced.key == chunk_key(keys[0][0])
        assert (announced.keys, announced.found, announced.asked) == (10, 10, 5)
        outcomes = {entry.peer: entry for entry in announced.peers}
        assert outcomes[frozen.peer].outcome == "failed"
        assert "in time" in outcomes[frozen.peer].reason
        assert 0.2 <= outcomes[frozen.peer].seconds <= announced.seconds <= 2.1
        assert [entry.outcome for entry in announced.peers].count("stored") == 4
        mesh.network.thaw(frozen.peer)

        stored = (await node.dht.put_manifest(digest, value)).query
        assert stored.count("stored") >= 4
        reader = await mesh.add()
        found = await reader.dht.search_chunks([digest for digest, _ in keys])
        assert found.query.found == 10
        assert found.query.asked >= 1
        manifest = await mesh.nodes[0].dht.search_manifest(digest)
        assert manifest.query is None, "it is kept here"
        closest = await node.dht.find_closest(b"somewhere")
        assert closest.report.count("answered") == len(closest.closest)
        kinds = [report.kind for report in node.dht.recent_queries()]
        assert kinds.index("announce") < kinds.index("put_manifest") < kinds.index("find_closest")
        assert node.dht.recent_queries()[-1] == closest.report


async def test_a_query_that_stalls_asks_more_at_a_time_and_ends_early_when_it_has_enough(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(16, latency=0.05) as mesh:
        reader, *others = mesh.nodes
        open_now = most = 0
        at_once: list[PeerId] = []
        client = reader.dht._client
        ask = client.find_node

        async def counted(peer: PeerId, key: bytes) -> Any:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            if trio.current_time() == began:
                at_once.append(peer)
            try:
                return await ask(peer, key)
            finally:
                open_now -= 1

        client.find_node = counted
        began = trio.current_time()
        await reader.dht.find_closest(b"k")
        assert len(at_once) == 3
        assert most >= 10, "everybody is known, so the first answers bring no progress"
        # Values: the first one ends it, long before everybody was asked.
        value = b"v" * 100
        digest = blake3(value).digest()
        await others[0].dht.put_manifest(digest, value)
        reader.dht._values._kept.clear()
        answer = await reader.dht.search_manifest(digest)
        assert answer.value == value
        assert answer.query is not None
        assert answer.query.asked <= 3


async def test_many_keys_and_many_callers_are_announced_a_few_at_a_time(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.dht.publisher._KEYS_AT_ONCE", 100)
    async with mesh_of(2, latency=0.05) as mesh:
        node = mesh.nodes[1]
        publisher, most = node.dht._publisher, 0
        spread = publisher._spread

        async def watched(keys: Any, *args: Any, **more: Any) -> None:
            nonlocal most
            most = max(most, publisher._spreads.borrowed_tokens)
            assert len(keys) <= 100
            await spread(keys, *args, **more)

        publisher._spread = watched
        async with trio.open_nursery() as nursery:
            for seed in range(10):
                nursery.start_soon(node.dht.announce, chunks(10, seed))
        assert most == 4
        assert mesh.nodes[0].dht.stats()["chunk_records"] == 100
        report = await node.dht.announce(chunks(150, 11))
        assert len(report.queries) == 2
        assert report.weakest == 1
