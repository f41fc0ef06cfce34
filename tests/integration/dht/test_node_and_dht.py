"""What a node does for the DHT when it starts and when it stops: real nodes, real sockets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import meshnode
import pytest
import trio
from blake3 import blake3
from meshnode.dht import Dht, DhtSettings, HandoverReport
from meshnode.dht.kad_wire import PeerAddresses
from meshnode.dht.peer_id import PeerId
from meshnode.dht.peer_record import decode_record, peer_record_key
from meshnode.node import assembly
from meshnode.node.assembly import Parts, open_parts
from meshnode.node.identity import Mesh
from meshnode.node.store import open_store
from meshnode.node.transfer import PutOptions

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
            with trio.fail_after(60):
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


async def published(keeper: Parts, peer: PeerId, addresses: Sequence[str]) -> None:
    """Wait until `keeper` keeps a signed record that says where `peer` listens."""
    kept, key = keeper.dht._values._kept, peer_record_key(peer)
    with trio.fail_after(60):
        while (  # noqa: ASYNC110
            key not in kept
            or decode_record(kept[key].value, keeper.mesh.id).addresses != tuple(addresses)
        ):
            await trio.sleep(0.02)


def say_of(teller: Parts, peer: PeerId, addresses: Sequence[str]) -> None:
    """Have `teller` tell others nothing about `peer` but `addresses`."""
    describe = teller.dht._contacts.describe

    def told(peers: Iterable[PeerId]) -> tuple[PeerAddresses, ...]:
        lie = PeerAddresses(peer, tuple(addresses))
        return tuple(lie if entry.peer == peer else entry for entry in describe(peers))

    teller.dht._contacts.describe = told


async def test_a_holder_that_came_back_on_another_port_is_found_by_the_record_it_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has never met it, and all that others say of it is old."""
    # The first records are published within a round: that is not what this test is about.
    monkeypatch.setattr(assembly, "DhtSettings", partial(DhtSettings, map_round=0.2))
    mesh, content = Mesh.create("moved"), bytes(range(256)) * 1000
    (tmp_path / "content").write_bytes(content)

    def iterative(name: str, joins: Mesh) -> meshnode.Config:
        return config_of(tmp_path / name, joins).with_overrides({"network.full_map_members": 0})

    async with meshnode.open_node(iterative("first", mesh)) as first:
        joins = mesh.with_bootstrap(first.addresses())
        holder = iterative("holder", joins)
        async with meshnode.open_node(holder) as node:
            await node.wait_ready()
            peer, old = node.peer_id, node._parts.host.addresses()
            link = await node.put(tmp_path / "content", PutOptions(replication=1))
            await published(first._parts, peer, old)
        async with meshnode.open_node(holder) as node:
            here = node._parts.host.addresses()
            assert here != old
            await published(first._parts, peer, here)
            say_of(first._parts, peer, old)
            async with meshnode.open_node(iterative("reader", joins), serve_peers=False) as reader:
                await reader.wait_ready()
                host = reader._parts.host
                assert host.known_addresses(peer) == old
                assert peer not in host.connected_peers()
                with trio.fail_after(60):
                    await reader.get(link, tmp_path / "got")
                assert peer in host.connected_peers()
    assert (tmp_path / "got").read_bytes() == content
