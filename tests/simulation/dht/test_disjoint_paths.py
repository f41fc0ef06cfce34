"""Members that collude mislead a lookup, but not all of its disjoint paths."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from meshnode.dht import DhtSettings
from meshnode.dht.framing import FrameReader, encode_frame
from meshnode.dht.kad_wire import (
    KadMessage,
    Kind,
    PeerAddresses,
    decode_message,
    encode_message,
)
from meshnode.dht.keyspace import manifest_key, peer_position, position
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import KAD_PROTOCOL, MAX_KAD_FRAME
from meshnode.dht.validators import Validators
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
K = 4
FAR_FUTURE = 4e9


def manifest(seed: int) -> tuple[bytes, bytes]:
    value = random.Random(seed).randbytes(200)
    return blake3(value).digest(), value


def named(hosts: list[Any]) -> list[PeerAddresses]:
    return [PeerAddresses(host.peer_id, tuple(host.addresses())) for host in hosts]


def lying(accomplices: list[PeerAddresses]) -> Callable[[PeerId, KadMessage], KadMessage]:
    """Answers that name accomplices and nobody else; what is given to be kept is forgotten."""

    def lie(sender: PeerId, request: KadMessage) -> KadMessage:
        target = position(request.key)
        near = sorted(accomplices, key=lambda entry: peer_position(entry.peer) ^ target)
        kept = request.value if request.kind is Kind.PUT_VALUE else None
        return KadMessage(request.kind, request.key, kept, closer=tuple(near[:K]))

    return lie


def sybils(mesh: Any, key: bytes, rng: random.Random) -> list[PeerAddresses]:
    """K peers nearer to `key` than all members, who answer with each other."""
    target = position(key)
    nearest = min(peer_position(node.peer) ^ target for node in mesh.nodes)
    hosts: list[Any] = []
    while len(hosts) < K:
        peer = PeerId.from_ed25519(rng.randbytes(32))
        if peer_position(peer) ^ target < nearest:
            hosts.append(mesh.network.add_host(peer))
    lie = lying(named(hosts))

    async def serve(stream: Any) -> None:
        frames = FrameReader(stream, MAX_KAD_FRAME)
        while await frames.wait():
            request = decode_message(await frames.read())
            await stream.write(encode_frame(encode_message(lie(stream.peer, request))))

    for host in hosts:
        host.set_handler(KAD_PROTOCOL, serve)
    return named(hosts)


async def test_manifests_are_found_although_every_fifth_member_leads_to_sybils(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    """One path alone finds 11 to 14 of these 16; what the paths do is tested by itself too."""
    async with mesh_of(0, settings=DhtSettings(k=K)) as mesh:
        await mesh.populate(40)
        rng = random.Random(9)
        liars = rng.sample(mesh.nodes, 8)
        honest = [node for node in mesh.nodes if node not in liars]
        found = 0
        for seed in range(16):
            digest, value = manifest(seed)
            reader, key = rng.choice(honest), manifest_key(digest)
            near = mesh.nearest(key, K, without=reader)
            for node in honest:
                if node.peer in near:
                    checked = Validators().check(key, value, 0.0)
                    node.dht._values.put(reader.peer, key, value, checked, FAR_FUTURE)
            lie = lying(sybils(mesh, key, rng))
            for node in liars:
                node.dht._server.answer_kad = lie
            answer = await reader.dht.search_manifest(digest)
            found += answer.value == value
            assert answer.query is not None
            assert answer.query.paths == 3
            asked = [entry.peer for entry in answer.query.peers]
            assert len(asked) == len(set(asked)), "no peer is asked on two paths"
        assert found >= 14


async def test_writes_walk_over_disjoint_paths_and_reach_the_true_nearest(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=DhtSettings(k=K)) as mesh:
        await mesh.populate(40)
        rng = random.Random(9)
        liars = rng.sample(mesh.nodes, 6)
        honest = [node for node in mesh.nodes if node not in liars]
        lie = lying(named([node.host for node in liars]))
        for node in liars:
            node.dht._server.answer_kad = lie
        right = total = 0
        for seed in range(16):
            digest, value = manifest(seed)
            writer = rng.choice(honest)
            report = await writer.dht.put_manifest(digest, value)
            assert report.query.paths == 3
            walk = writer.dht.recent_queries()[-2]
            assert {entry.path for entry in walk.peers} == {0, 1, 2}
            near = mesh.nearest(manifest_key(digest), K, without=writer)
            keeping = [n for n in honest if n.peer in near]
            total += len(keeping)
            right += sum(n.dht._values.get(manifest_key(digest), 0.0) is not None for n in keeping)
        assert right >= 0.9 * total


async def test_a_node_that_knows_everybody_walks_nowhere(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6) as mesh:
        digest, value = manifest(1)
        report = await mesh.nodes[1].dht.put_manifest(digest, value)
        assert (report.query.paths, report.query.hops, report.query.asked) == (1, 0, 5)


@pytest.mark.parametrize("paths", [1, 2])
async def test_the_number_of_paths_is_a_setting(
    mesh_of: MeshOpener, autojump_clock: MockClock, paths: int
) -> None:
    settings = replace(DhtSettings(k=K), disjoint_paths=paths)
    async with mesh_of(10, settings=settings) as mesh:
        answer = await mesh.nodes[3].dht.search_manifest(b"n" * 32)
        assert answer.query is not None
        assert answer.query.paths == paths
