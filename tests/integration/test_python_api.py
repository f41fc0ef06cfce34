"""The Python API as the README shows it: real nodes in this process, on real sockets."""

from __future__ import annotations

import random
from pathlib import Path

import meshnode
import pytest
from meshnode.node.identity import Mesh


def config_of(home: Path, mesh: Mesh, *, replication: int) -> meshnode.Config:
    home.mkdir()
    mesh.save(home / "mesh.json")
    return meshnode.load_config(home, env={}).with_overrides(
        {
            "network.listen": ["/ip4/127.0.0.1/tcp/0"],
            "network.mdns": False,
            "storage.replication": replication,
        }
    )


async def test_what_one_node_puts_another_gets_and_streams(tmp_path: Path) -> None:
    source = tmp_path / "report.pdf"
    source.write_bytes(random.randbytes(3_000_000))
    mesh = Mesh.create("python")
    async with meshnode.open_node(config_of(tmp_path / "a", mesh, replication=2)) as first:
        joined = mesh.with_bootstrap(first.addresses())
        async with meshnode.open_node(config_of(tmp_path / "b", joined, replication=2)) as second:
            await second.wait_ready()
            link = await second.put(source)
            await first.get(link, tmp_path / "copy.pdf")
            assert (tmp_path / "copy.pdf").read_bytes() == source.read_bytes()
            async with first.stream(str(link), offset=1_000_000, length=500_000) as pieces:
                part = b"".join([piece async for piece in pieces])
            assert part == source.read_bytes()[1_000_000:1_500_000]
            assert [entry.link for entry in await second.catalogue()] == [link]
            report = await second.remove(link)
            assert report.released == {first.peer_id: report.chunks}
            status = await first.status()
            assert status.store.chunks == 0
            assert status.counters["transport_connections"] == 1
            assert status.counters["gate_streams_rejected"] == 0


async def test_a_lonely_put_raises_a_weak_error_whose_link_is_good(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_text("precious")
    config = config_of(tmp_path / "a", Mesh.create("python"), replication=3)
    async with meshnode.open_node(config) as node:
        with pytest.raises(meshnode.WeakError) as caught:
            await node.put(source)
        link = caught.value.link
        assert isinstance(link, meshnode.Link)
        await node.get(link, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "precious"


async def test_a_home_without_a_mesh_is_a_membership_error(tmp_path: Path) -> None:
    config = meshnode.load_config(tmp_path, env={})
    with pytest.raises(meshnode.MeshError, match="mesh"):
        async with meshnode.open_node(config):
            pytest.fail("a node ran without a mesh")
