"""What a node does for the DHT when it starts and when it stops: real nodes, real sockets."""

from __future__ import annotations

from pathlib import Path

import meshnode
import pytest
import trio
from blake3 import blake3
from meshnode.dht import Dht, HandoverReport
from meshnode.node.assembly import open_parts
from meshnode.node.identity import Mesh
from meshnode.node.store import open_store

CHUNK = b"put by a peer, moments before the power went"
DIGEST = blake3(CHUNK).digest()


def config_of(home: Path, mesh: Mesh) -> meshnode.Config:
    home.mkdir()
    mesh.save(home / "mesh.json")
    return meshnode.load_config(home, env={}).with_overrides(
        {"network.listen": ["/ip4/127.0.0.1/tcp/0"], "network.mdns": False}
    )


async def test_a_chunk_that_a_crash_left_unannounced_is_found_after_the_restart(
    tmp_path: Path,
) -> None:
    mesh = Mesh.create("crash")
    crashed = config_of(tmp_path / "a", mesh)
    async with open_store(crashed.paths.data_dir, quota=None, min_free=0) as store:
        await store.chunks.put([(DIGEST, CHUNK)])
    async with open_parts(crashed, serve_peers=True) as parts:
        addresses = [f"{a}/p2p/{parts.identity.peer_id}" for a in parts.host.addresses()]
        other = config_of(tmp_path / "b", mesh.with_bootstrap(addresses))
        async with open_parts(other, serve_peers=True) as reader:
            with trio.fail_after(20):
                while not (found := (await reader.dht.find_chunks([DIGEST]))[DIGEST]):  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert [(r.peer, r.size) for r in found] == [(parts.identity.peer_id, len(CHUNK))]


async def test_a_node_hands_over_when_it_stops_in_order_and_is_not_for_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[float] = []

    async def hand_over(self: Dht, within: float = 0.0) -> HandoverReport:
        await trio.lowlevel.checkpoint()
        # Its peers can still be reached: the host and the tasks of the DHT are up.
        assert self.stats()["table_peers"] == 0
        assert not self._context.nursery.cancel_scope.cancel_called
        handed.append(within)
        return HandoverReport(3, 1, 1, 1, 0, 0.1, True)

    monkeypatch.setattr(Dht, "hand_over", hand_over)
    config = config_of(tmp_path / "a", Mesh.create("stop"))
    async with meshnode.open_node(config) as node:
        status = (await node.status()).to_json()
        assert status["keys_pending"] == 0
        assert status["announce_lag_seconds"] == 0
        assert handed == []
    assert len(handed) == 1
    assert 1.0 <= handed[0] <= 3.0
    async with meshnode.open_node(config, serve_peers=False):
        pass
    assert len(handed) == 1
