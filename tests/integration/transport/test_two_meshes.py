"""Two real meshes on real sockets: who is in one gets nothing from the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from meshnode.dht.host import Stream
from meshnode.errors import MembershipError, PeerError
from meshnode.node.identity import Identity, MemberInfo, Mesh
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.member import MemberHost, open_member_host

SECRET = "/test/secret/1"
UNREAD = "/test/unread/1"
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


async def pour(host: Libp2pHost, victim: Libp2pHost) -> None:
    """Send a MiB on each of eight streams nobody reads, and see how far that goes."""

    async def send() -> None:
        try:
            stream = await host.open_stream(victim.peer_id, UNREAD)
            await stream.write(bytes(1 << 20))
        except PeerError:
            return

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(send)


async def test_a_stranger_makes_us_hold_no_more_than_its_bound_and_a_member_may_send_more() -> None:
    async with opened_host() as inner, opened_host() as stranger, opened_host() as friend:
        info = MemberInfo("node", "attic", "meshnode/test")
        held: list[int] = []

        async def never_read(stream: Stream) -> None:
            while True:
                (connection,) = inner._connections[stream.peer]
                held.append(connection._muxer.buffered)
                await trio.lowlevel.checkpoint()
                if connection.closed or held[-1] >= 8 << 20:
                    return

        inner.set_handler(UNREAD, never_read)
        async with (
            open_member_host(inner, OURS, info) as victim,
            open_member_host(friend, OURS, info) as member_host,
        ):
            for host in (stranger, friend):
                host.add_addresses(victim.peer_id, victim.addresses())
            await pour(stranger, inner)
            assert inner.counts.violations == {"stranger_flood": 1}
            assert 0 < max(held) <= (1 << 20) + 65536
            held.clear()
            await member_host.connect(victim.peer_id)
            await pour(friend, inner)
            assert max(held) >= 4 << 20
            assert inner.counts.violations == {"stranger_flood": 1}
