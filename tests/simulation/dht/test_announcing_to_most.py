"""An announcement is over when most peers have it; the others are told without its caller."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht import DhtSettings
from meshnode.node.transport.sim import SimLink
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

SETTINGS = DhtSettings(k=20)
SIZE = 13
SLOW = SimLink(latency=0.4)


def chunks(count: int, seed: int = 3) -> list[tuple[bytes, int]]:
    rng = random.Random(seed)
    return [(rng.randbytes(32), 1000 + i) for i in range(count)]


def keepers(mesh: Any, publisher: Any, digest: bytes) -> int:
    return sum(
        node.dht._chunks.knows(publisher.peer, digest)
        for node in mesh.nodes
        if node is not publisher
    )


async def test_frozen_peers_are_not_waited_for_once_most_have_every_key(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(SIZE, settings=SETTINGS) as mesh:
        node, keys = mesh.nodes[1], chunks(50)
        await node.dht.announce(chunks(1, seed=4))
        frozen = mesh.nodes[5:8]
        for other in frozen:
            mesh.network.freeze(other.peer)
        began = trio.current_time()
        report = await node.dht.announce(keys)
        assert trio.current_time() - began < 0.2
        assert report.weakest >= 8
        assert report.pending == 0
        assert set(report.unanswered) >= {other.peer for other in frozen}
        assert not report.failed
        await trio.sleep(3)
        assert node.dht.stats()["announced_late"] >= 3
        async with trio.open_nursery() as nursery:
            for other in frozen:
                mesh.network.thaw(other.peer)
                nursery.start_soon(other.dht.bootstrap, [node.peer])
        await trio.sleep(30)
        assert all(keepers(mesh, node, digest) == SIZE - 1 for digest, _ in keys)


async def test_slow_peers_get_what_they_keep_after_the_caller_has_gone_on(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(SIZE, settings=SETTINGS) as mesh:
        node, keys = mesh.nodes[1], chunks(100)
        slow = mesh.nodes[5:8]
        await node.dht.announce(chunks(1, seed=4))
        for other in slow:
            mesh.network.set_link(node.peer, other.peer, SLOW)
        report = await node.dht.announce(keys)
        counted = dict(report.stored)
        assert report.weakest == SIZE - 1 - len(slow)
        await trio.sleep(5)
        assert report.stored == counted, "a report does not change"
        assert all(keepers(mesh, node, digest) == SIZE - 1 for digest, _ in keys)


async def test_a_withdrawal_waits_for_what_is_still_under_way_to_a_slow_peer(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(SIZE, settings=SETTINGS) as mesh:
        node, keys = mesh.nodes[1], chunks(100)
        await node.dht.announce(chunks(1, seed=4))
        told: list[str] = []
        slow = mesh.nodes[5]
        answer = slow.dht._server.answer_records

        def note(sender: Any, request: Any) -> Any:
            told.append(type(request).__name__)
            return answer(sender, request)

        slow.dht._server.answer_records = note
        mesh.network.set_link(node.peer, slow.peer, SLOW)
        report = await node.dht.announce(keys)
        assert slow.peer in report.unanswered
        await node.dht.withdraw([digest for digest, _ in keys])
        assert told == ["Announce", "Withdraw"]
        assert not any(keepers(mesh, node, digest) for digest, _ in keys)


async def test_an_announcement_that_is_given_up_leaves_nothing_under_way(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(SIZE, settings=SETTINGS) as mesh:
        node, keys = mesh.nodes[1], chunks(5)
        await node.dht.announce(chunks(1, seed=4))
        for other in mesh.nodes:
            if other is not node:
                mesh.network.set_link(node.peer, other.peer, SLOW)
        with trio.move_on_after(0.1) as scope:
            await node.dht.announce(keys)
        assert scope.cancelled_caught
        await trio.sleep(0.1)
        assert not node.dht._publisher._telling
        assert node.dht.keys_pending == 5


@pytest.mark.parametrize("size", [3, 8])
async def test_where_eight_do_not_exist_all_are_waited_for(
    mesh_of: MeshOpener, autojump_clock: MockClock, size: int
) -> None:
    async with mesh_of(size, settings=SETTINGS) as mesh:
        report = await mesh.nodes[1].dht.announce(chunks(20))
        assert report.weakest == size - 1
        assert report.unanswered == ()
