"""Two real meshes on real sockets: who is in one gets nothing from the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from meshnode.dht.host import Stream
from meshnode.errors import MembershipError, PeerError
from meshnode.node.identity import PROTOCOL as PROOF
from meshnode.node.identity import Identity, MemberInfo, Mesh
from meshnode.node.transport.identify import IDENTIFY_PROTOCOL, PUSH_PROTOCOL
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.member import GateLimits, MemberHost, open_member_host
from meshnode.node.transport.ping import PING_PROTOCOL

SECRET = "/test/secret/1"
UNREAD = "/test/unread/1"
PUBLIC = "/test/public/1"
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


async def test_a_stranger_that_skips_the_proof_is_served_nothing_and_learns_of_nothing() -> None:
    async with member(OURS) as one, opened_host() as stranger:
        stranger.add_addresses(one.peer_id, one.addresses())
        hidden = [SECRET, IDENTIFY_PROTOCOL, PUSH_PROTOCOL, PING_PROTOCOL]
        for protocol in [*hidden, "/test/never-heard-of/1"]:
            with pytest.raises(PeerError, match=f"does not speak {protocol}"):
                await stranger.open_stream(one.peer_id, protocol)
        assert one.rejected_streams == len(hidden)
        assert one.stats()["gate_streams_rejected"] == len(hidden)


async def test_a_closed_mesh_asks_no_stranger_who_it_is() -> None:
    asked = trio.Event()

    async def answer(stream: Stream) -> None:
        asked.set()

    async with member(OURS) as one, opened_host() as stranger:
        stranger.set_handler(IDENTIFY_PROTOCOL, answer)
        stranger.add_addresses(one.peer_id, one.addresses())
        await stranger.connect(one.peer_id)
        with pytest.raises(PeerError, match="does not speak"):  # a round trip later, still nothing
            await stranger.ping(one.peer_id)
        assert not asked.is_set()


async def test_members_answer_each_others_identify_and_ping() -> None:
    async with opened_host() as inner, member(OURS) as one:
        info = MemberInfo("node", "attic", "meshnode/test")
        async with open_member_host(inner, OURS, info) as other:
            other.add_addresses(one.peer_id, one.addresses())
            await other.connect(one.peer_id)
            told = await inner.identify(one.peer_id)
            assert {SECRET, PROOF, IDENTIFY_PROTOCOL} <= set(told.protocols)
            assert await inner.ping(one.peer_id) > 0


async def test_an_open_mesh_serves_strangers_what_any_libp2p_node_does_and_what_is_public() -> None:
    info = MemberInfo("node", "attic", "meshnode/test")
    limits = GateLimits(unproven_timeout=0.05)
    mesh = Mesh.create("open", open=True)
    async with (
        opened_host() as inner,
        opened_host() as stranger,
        open_member_host(inner, mesh, info, limits=limits, public=[PUBLIC]) as one,
    ):
        one.set_handler(SECRET, serve_secret)
        one.set_handler(PUBLIC, serve_secret)
        stranger.add_addresses(one.peer_id, one.addresses())
        stream = await stranger.open_stream(one.peer_id, PUBLIC)
        assert await stream.read_some() == b"secret"
        with pytest.raises(PeerError, match="does not speak"):
            await stranger.open_stream(one.peer_id, SECRET)
        told = await stranger.identify(one.peer_id)
        assert set(told.protocols) == {IDENTIFY_PROTOCOL, PING_PROTOCOL, PROOF, PUBLIC}
        assert not one.connected_peers()
        async with stranger.events() as events:
            with trio.move_on_after(4 * limits.unproven_timeout):
                await events.receive()
                raise AssertionError("the stranger was shown the door")


async def test_a_closed_mesh_has_no_public_protocols() -> None:
    info = MemberInfo("node", "attic", "meshnode/test")
    async with (
        opened_host() as inner,
        opened_host() as stranger,
        open_member_host(inner, OURS, info, public=[PUBLIC]) as one,
    ):
        one.set_handler(PUBLIC, serve_secret)
        stranger.add_addresses(one.peer_id, one.addresses())
        with pytest.raises(PeerError, match="does not speak"):
            await stranger.open_stream(one.peer_id, PUBLIC)


async def test_who_hears_our_verdict_first_is_not_refused_what_it_opens_at_once() -> None:
    """The other side is a member as soon as it has judged us; we have yet to read its verdict."""
    async with opened_host() as inner, opened_host() as friend:
        info = MemberInfo("node", "attic", "meshnode/test")
        async with open_member_host(inner, OURS, info) as one:
            one.set_handler(SECRET, serve_secret)
            hello, verdict = trio.Event(), trio.Event()
            handler = None

            async with open_member_host(friend, OURS, info) as other:
                handler = friend._handlers[PROOF]

                async def dawdle(stream: Stream) -> None:
                    hello.set()
                    await verdict.wait()
                    assert handler is not None
                    await handler(stream)

                friend.set_handler(PROOF, dawdle)
                one.add_addresses(other.peer_id, other.addresses())
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one.connect, other.peer_id)
                    await hello.wait()
                    got: list[bytes] = []

                    async def ask() -> None:
                        stream = await friend.open_stream(one.peer_id, SECRET)
                        got.append(await stream.read_some())

                    nursery.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    verdict.set()
                assert got == [b"secret"]
                assert one.rejected_streams == 0


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
        # Open, so that a stranger gets a stream at all; much memory it gets in neither.
        mesh = Mesh.create("open", open=True)
        async with (
            open_member_host(inner, mesh, info, public=[UNREAD]) as victim,
            open_member_host(friend, mesh, info) as member_host,
        ):
            for host in (stranger, friend):
                host.add_addresses(victim.peer_id, victim.addresses())
            await pour(stranger, inner)
            assert inner.counts.violations == {"stranger_flood": 1}
            assert 0 < max(held) <= (1 << 20) + 65536
            held.clear()
            await member_host.connect(victim.peer_id)
            await pour(friend, inner)
            with trio.fail_after(20):
                while max(held) < 4 << 20:
                    await trio.lowlevel.checkpoint()
            assert inner.counts.violations == {"stranger_flood": 1}
