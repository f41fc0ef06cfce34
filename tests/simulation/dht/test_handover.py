"""What a node keeps moves to newcomers and to its heirs, and only as far as it can be believed."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from blake3 import blake3
from meshnode.dht import DhtSettings, MemoryBackend
from meshnode.dht.handover_wire import Hint, MovedValue
from meshnode.dht.keyspace import chunk_key, manifest_key, peer_position, position
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError, PeerRefusedError
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
K = 4
QUIET = DhtSettings(zone="attic", k=K, republish=10 * 86_400.0, record_ttl=20 * 86_400.0)
"""Nobody repeats anything meanwhile: what moves was moved."""


def chunks(count: int, seed: int = 3) -> list[tuple[bytes, int]]:
    rng = random.Random(seed)
    return [(rng.randbytes(32), 1000 + i) for i in range(count)]


def manifests(count: int) -> list[tuple[bytes, bytes]]:
    values = [random.Random(i).randbytes(300) for i in range(count)]
    return [(blake3(value).digest(), value) for value in values]


def keeps(node: Any, publisher: PeerId, digest: bytes) -> bool:
    known: bool = node.dht._chunks.knows(publisher, digest)
    return known


def keeps_value(node: Any, digest: bytes) -> bool:
    return node.dht._values.get(manifest_key(digest), 0.0) is not None


def responsible(mesh: Any, key: bytes, publisher: Any) -> list[Any]:
    """Of the K living nodes nearest to `key` those that keep its records: not the publisher."""
    near = nearest_with(mesh, key)
    return [node for node in mesh.nodes if node.peer in near and node is not publisher]


def nearest_with(mesh: Any, key: bytes, *newcomers: PeerId) -> list[PeerId]:
    target = position(key)
    everybody = [*(node.peer for node in mesh.nodes), *newcomers]
    return sorted(everybody, key=lambda peer: peer_position(peer) ^ target)[:K]


async def test_a_node_that_leaves_gives_its_heirs_what_it_kept(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(14, settings=QUIET) as mesh:
        publisher, *others = mesh.nodes
        records, values = chunks(300), manifests(40)
        await publisher.dht.announce(records)
        for digest, value in values:
            await publisher.dht.put_manifest(digest, value)
        leaving = max(others, key=lambda node: node.dht.stats()["chunk_records"])
        kept = [d for d, _ in records if keeps(leaving, publisher.peer, d)]
        kept_values = [d for d, _ in values if keeps_value(leaving, d)]
        assert len(kept) > 50
        assert len(kept_values) > 5

        report = await leaving.dht.hand_over(2.0)
        assert report.complete
        assert report.failed == 0
        assert report.due == report.records + report.values > 50
        assert report.seconds < 2.0
        await mesh.stop(leaving)
        await trio.sleep(10)

        moved = total = 0
        for digest in kept:
            for node in responsible(mesh, chunk_key(digest), publisher):
                total += 1
                moved += keeps(node, publisher.peer, digest)
        assert moved >= 0.95 * total
        moved = total = 0
        for digest in kept_values:
            for node in responsible(mesh, manifest_key(digest), publisher):
                total += 1
                moved += keeps_value(node, digest)
        assert moved >= 0.95 * total


async def test_a_newcomer_is_given_what_it_is_responsible_for_though_publishers_do_not_meet_it(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(14, settings=QUIET) as mesh:
        publisher = mesh.nodes[1]
        records, values = chunks(400), manifests(40)
        await publisher.dht.announce(records)
        for digest, value in values:
            await publisher.dht.put_manifest(digest, value)
        # The publisher itself offers nothing: only those that keep its records can pass them on.
        publisher.dht._repeater._offered = {n.peer: trio.current_time() for n in mesh.nodes}
        newcomer = mesh.add_host()
        publisher.dht._repeater._offered[newcomer.peer_id] = trio.current_time()
        mine = [
            d
            for d, _ in records
            if newcomer.peer_id in nearest_with(mesh, chunk_key(d), newcomer.peer_id)
        ]
        mine_values = [
            d
            for d, _ in values
            if newcomer.peer_id in nearest_with(mesh, manifest_key(d), newcomer.peer_id)
        ]
        assert len(mine) > 40
        assert len(mine_values) >= 4
        node = await start(mesh, newcomer)
        await trio.sleep(200)
        assert sum(keeps(node, publisher.peer, d) for d in mine) >= 0.9 * len(mine)
        assert sum(keeps_value(node, d) for d in mine_values) >= 0.8 * len(mine_values)
        assert node.dht.stats()["hints_confirmed"] >= 0.9 * len(mine)
        zones = {r.zone for d in mine for r in node.dht._chunks.holders(d, 0.0)}
        assert zones == {"attic"}


async def start(mesh: Any, host: Any) -> Any:
    node = await mesh._nursery.start(mesh._live, host, MemoryBackend(), mesh.settings)
    first = mesh.nodes[0].host
    host.add_addresses(first.peer_id, first.addresses())
    await node.dht.bootstrap([first.peer_id])
    mesh.nodes.append(node)
    return node


async def test_a_mesh_of_no_more_than_k_nodes_has_nothing_to_hand_over(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(5) as mesh:
        await mesh.nodes[1].dht.announce(chunks(100))
        began = trio.current_time()
        report = await mesh.nodes[2].dht.hand_over(2.0)
        assert (report.due, report.complete) == (0, True)
        assert trio.current_time() - began < 0.1


async def test_handing_over_to_frozen_heirs_takes_no_longer_than_allowed(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(14, settings=QUIET) as mesh:
        publisher, leaving = mesh.nodes[1], mesh.nodes[2]
        await publisher.dht.announce(chunks(300))
        for node in mesh.nodes[3:]:
            mesh.network.freeze(node.peer)
        began = trio.current_time()
        report = await leaving.dht.hand_over(1.5)
        assert trio.current_time() - began <= 1.6
        assert report.due > report.records
        assert not report.complete or report.failed


async def test_hints_are_believed_only_as_far_as_the_publisher_confirms_them(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        server, publisher, hinter = mesh.nodes[0], mesh.nodes[1], mesh.nodes[2]
        held, gone = chunks(20), chunks(20, seed=4)
        publisher.dht._chunks.hold(held[0][0], 77)
        for digest, size in held[1:]:
            publisher.dht._chunks.hold(digest, size)
        hint = Hint(publisher.peer, (), tuple(d for d, _ in held + gone))
        assert await hinter.dht._client.hint(server.peer, [hint]) == 40
        await trio.sleep(10)
        assert all(keeps(server, publisher.peer, d) for d, _ in held)
        assert not any(keeps(server, publisher.peer, d) for d, _ in gone)
        assert not any(keeps(server, hinter.peer, d) for d, _ in held)
        (record,) = server.dht._chunks.holders(held[0][0], 0.0)
        assert record.size == 77
        assert await hinter.dht._client.hint(server.peer, [hint]) == 20, "known ones are not asked"


async def test_a_peer_whose_hints_prove_false_is_not_listened_to_and_floods_nobody(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        server, victim, liar, honest = mesh.nodes
        began = server.dht.stats()["rpcs_sent"]
        taken = refused = 0
        for round_ in range(30):
            hint = Hint(victim.peer, (), tuple(d for d, _ in chunks(1000, seed=round_)))
            try:
                taken += await liar.dht._client.hint(server.peer, [hint])
            except PeerRefusedError:
                refused += 1
            await trio.sleep(1)
        assert refused >= 20
        assert server.dht.stats()["rpcs_sent"] - began < 20, "one batch per publisher and 5 s"
        assert server.dht.stats()["hinters_ignored"] >= 1
        assert server.dht.stats()["chunk_records"] == 0
        await trio.sleep(60)
        assert server.dht.stats()["hints_waiting"] == 0
        digest = b"h" * 32
        victim.dht._chunks.hold(digest, 5)
        assert await honest.dht._client.hint(server.peer, [Hint(victim.peer, (), (digest,))]) == 1
        await trio.sleep(10)
        assert keeps(server, victim.peer, digest)


async def test_hints_of_a_publisher_that_cannot_be_asked_are_given_up(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        server, hinter = mesh.nodes[0], mesh.nodes[1]
        nobody = PeerId.from_ed25519(b"n" * 32)
        hint = Hint(nobody, ("/ip4/10.9.9.9/tcp/9",), (b"d" * 32,))
        assert await hinter.dht._client.hint(server.peer, [hint]) == 1
        await trio.sleep(120)
        assert server.dht.stats()["hints_waiting"] == 0
        assert server.dht.stats()["hints_dropped"] == 1
        assert not keeps(server, nobody, b"d" * 32)


async def test_what_is_withdrawn_while_its_hint_is_being_confirmed_does_not_come_back(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3, latency=0.2) as mesh:
        server, publisher, hinter = mesh.nodes
        (digest, size), (queued, _) = chunks(2)
        await publisher.dht.announce([(digest, size), (queued, size)])
        server.dht._chunks.withdraw(publisher.peer, [digest, queued])
        await hinter.dht._client.hint(server.peer, [Hint(publisher.peer, (), (digest,))])
        # The confirmation is on its way back when the publisher lets go.
        await trio.sleep(0.1)
        await hinter.dht._client.hint(server.peer, [Hint(publisher.peer, (), (queued,))])
        await publisher.dht.withdraw([digest, queued])
        await trio.sleep(30)
        assert not keeps(server, publisher.peer, digest)
        assert not keeps(server, publisher.peer, queued)
        assert (await server.dht.find_chunks([digest]))[digest] == []


async def test_moving_prolongs_no_life(mesh_of: MeshOpener, autojump_clock: MockClock) -> None:
    """A manifest that was withdrawn ends when it would have ended, however often it moves."""
    async with mesh_of(3, settings=DhtSettings(record_ttl=7200, republish=3600)) as mesh:
        one, other = mesh.nodes[0], mesh.nodes[1]
        (digest, value), (forged, _) = manifests(2)
        key = manifest_key(digest)
        moved = MovedValue(key, 600, value)
        assert await one.dht._client.move_values(other.peer, [moved]) == 1
        await trio.sleep(300)
        ((_, kept),) = other.dht._values.kept(0.0)
        left = int(kept.expires - other.dht._wall_clock())
        assert 290 <= left <= 301
        assert await other.dht._client.move_values(one.peer, [MovedValue(key, left, value)]) == 1
        await trio.sleep(310)
        assert await mesh.nodes[2].dht.get_manifest(digest) is None
        greedy = MovedValue(key, 2**31 - 1, value)
        assert await one.dht._client.move_values(other.peer, [greedy]) == 1
        ((_, kept),) = list(other.dht._values.kept(other.dht._wall_clock()))
        assert kept.expires <= other.dht._wall_clock() + 7200
        lie = MovedValue(manifest_key(forged), 600, value)
        with pytest.raises(PeerError):
            await one.dht._client.move_values(other.peer, [lie])
        assert not keeps_value(other, forged)
