"""Values whose nearest peers crowd around the key and do harm: others keep them as well."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from blake3 import blake3
from meshnode.dht import DhtSettings
from meshnode.dht.keyspace import BITS, manifest_key, peer_position, position
from meshnode.dht.names import name_key, sign_name
from meshnode.node.identity import Identity
from trio.testing import MockClock

from .conftest import EPOCH

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

K = 4
HONEST = 14
VALUE = b"a manifest"
DIGEST = blake3(VALUE).digest()
ALICE = Identity.from_seed(b"\1" * 32)
EXPIRES = int(EPOCH) + 86_400


async def crowd_around(key: bytes, mesh: Any, *, full_map: bool) -> list[Any]:
    """The k nodes nearest to `key`, five times nearer than k nodes are to be expected."""
    rng = random.Random(1)
    while len(mesh.nodes) < HONEST + K:
        signer = Identity.from_seed(rng.randbytes(32))
        if peer_position(signer.peer_id) ^ position(key) < 2**BITS * K // (HONEST + K) // 5:
            if full_map:
                mesh._signers[signer.peer_id] = signer
            await mesh.add(peer=signer.peer_id)
    await trio.sleep(60)
    return sorted(mesh.nodes, key=lambda node: peer_position(node.peer) ^ position(key))[:K]


@pytest.mark.parametrize("full_map", [False, True], ids=["iterative", "full map"])
async def test_a_manifest_is_found_although_all_nearest_peers_have_forgotten_it(
    mesh_of: MeshOpener, autojump_clock: MockClock, full_map: bool
) -> None:
    key = manifest_key(DIGEST)
    async with mesh_of(HONEST, settings=DhtSettings(k=K), full_map=full_map) as mesh:
        crowd = await crowd_around(key, mesh, full_map=full_map)
        writer, *readers = (node for node in mesh.nodes if node not in crowd)
        report = await writer.dht.put_manifest(DIGEST, VALUE)
        assert {node.peer for node in crowd} < set(report.stored_on)
        for node in crowd:
            node.dht._values._remove(key)
        readers = [node for node in readers if node.dht._values.get(key, EPOCH) is None]
        assert await readers[0].dht.get_manifest(DIGEST) == VALUE


async def test_a_name_is_up_to_date_although_all_nearest_peers_have_an_old_record(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    key = name_key(ALICE.peer_id, "photos")
    async with mesh_of(HONEST, settings=DhtSettings(k=K), full_map=True) as mesh:
        crowd = await crowd_around(key, mesh, full_map=True)
        old, new = (
            sign_name(ALICE, "photos", b"%d" % sequence, sequence=sequence, expires=EXPIRES)
            for sequence in (1, 2)
        )
        writer, *readers = (node for node in mesh.nodes if node not in crowd)
        await writer.dht.put_name(old)
        behind = {node.peer: node.dht._values._kept[key] for node in crowd}
        await writer.dht.put_name(new)
        for node in crowd:
            node.dht._values._kept[key] = behind[node.peer]
        readers = [node for node in readers if node.dht._values.get(key, EPOCH) is None]
        answer = await readers[0].dht.get_name(ALICE.peer_id, "photos")
        assert answer.record == new
