"""A mesh in which connections nobody uses end: nobody is taken for down, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht.host import Host
from meshnode.node.transport.limits import HostLimits
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

FEW = HostLimits(connections_low=4, connections_high=8, idle_after=120.0)
FAULTS = ("rpcs_failed", "rpcs_late", "pings_failed", "peers_evicted", "offers_failed")


def total(mesh: Any, *names: str) -> int:
    return sum(node.dht.stats().get(name, 0) for node in mesh.nodes for name in names)


def connections(mesh: Any) -> list[int]:
    return [len(node.host.connected_peers()) for node in mesh.nodes]


class DialCount:
    """New connections, each counted at both ends."""

    def __init__(self) -> None:
        self.ends = 0

    async def follow(self, host: Host, *, task_status: trio.TaskStatus[None]) -> None:
        async with host.events() as events:
            task_status.started()
            async for event in events:
                self.ends += event.connected


@pytest.mark.parametrize("full_map", [False, True], ids=["iterative", "full map"])
async def test_idle_connections_end_and_the_mesh_notices_nothing(
    mesh_of: MeshOpener, autojump_clock: MockClock, full_map: bool
) -> None:
    async with mesh_of(12, limits=FEW, full_map=full_map) as mesh, trio.open_nursery() as nursery:
        digests = [random.Random(number).randbytes(32) for number in range(100)]
        report = await mesh.nodes[3].dht.announce([(digest, 1) for digest in digests])
        assert not report.failed
        assert min(connections(mesh)) > FEW.connections_high
        await trio.sleep(300)
        dials = DialCount()
        for node in mesh.nodes:
            await nursery.start(dials.follow, node.host)
        asked, closed = (
            total(mesh, "rpcs_sent"),
            sum(n.host.trimmer.closed_idle for n in mesh.nodes),
        )
        await trio.sleep(600)

        # Of 11. Who was asked something lately is still connected, and hardly anybody else.
        counts = connections(mesh)
        assert sum(counts) / len(counts) < 9.5
        assert sum(n.host.trimmer.closed_idle for n in mesh.nodes) > closed
        # Nobody dials in order to be connected, only to say something.
        assert 0 < dials.ends // 2 <= total(mesh, "rpcs_sent") - asked
        assert total(mesh, *FAULTS) == 0
        assert {len(node.dht.peers()) for node in mesh.nodes} == {11}
        found = await mesh.nodes[9].dht.find_chunks(digests)
        assert all(found[digest] for digest in digests)
        assert total(mesh, *FAULTS) == 0
        nursery.cancel_scope.cancel()
