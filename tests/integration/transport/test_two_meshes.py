"""Two real meshes on real sockets: who is in one gets nothing from the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from meshnode.dht.host import Stream
from meshnode.errors import MembershipError, PeerError
from meshnode.node.identity import Identity, MemberInfo, Mesh
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.member import MemberHost, open_member_host

SECRET = "/test/secret/1"
OURS = Mesh.create("ours")
THEIRS = Mesh.create("theirs")


async def serve_secret(stream: Stream) -> None:
    await stream.write(b"secret")


@asynccontextmanager
async def opened_host() -> AsyncIterator[Libp2pHost]:
    identity = Identity.generate()
    async with open_libp2p_host(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as host:
        yield host


@asynccontextmanager
async def member(mesh: Mesh, *known: Libp2pHost | MemberHost) -> AsyncIterator[MemberHost]:
    async with opened_host() as inner:
        info = MemberInfo("node", "attic", "meshnode/test")
        async with open_member_host(inner, mesh, info) as host:
            host.set_handler(SECRET, serve_secret)
            for other in known:
                host.add_addresses(other.peer_id, other.addresses())
            yield host


async def test_members_of_one_mesh_serve_each_other() -> None:
    async with member(OURS) as one, member(OURS, one) as other:
        stream = await other.open_stream(one.peer_id, SECRET)
        assert await stream.read_some() == b"secret"
        assert one.connected_peers() == {other.peer_id}
        assert one.known_addresses(other.peer_id) == other.addresses()


async def test_a_member_of_a_second_mesh_is_refused_in_both_directions() -> None:
    async with member(OURS) as one, member(THEIRS, one) as stranger:
        with pytest.raises(MembershipError, match="refused us"):
            await stranger.open_stream(one.peer_id, SECRET)
        one.add_addresses(stranger.peer_id, stranger.addresses())
        with pytest.raises(MembershipError):
            await one.open_stream(stranger.peer_id, SECRET)
        assert not one.connected_peers()
        assert not stranger.connected_peers()


async def test_a_stranger_that_skips_the_proof_is_served_nothing() -> None:
    async with member(OURS) as one, opened_host() as stranger:
        stranger.add_addresses(one.peer_id, one.addresses())
        stream = await stranger.open_stream(one.peer_id, SECRET)
        with pytest.raises(PeerError):
            assert await stream.read_some() == b"", "a stranger was served"
        assert one.rejected_streams == 1
