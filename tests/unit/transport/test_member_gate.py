"""The gate of the mesh, over the simulated host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from meshnode.dht.host import ConnectionEvent, Stream
from meshnode.dht.peer_id import PeerId
from meshnode.errors import MembershipError, PeerError
from meshnode.node.identity import PROTOCOL, MemberInfo, Mesh
from meshnode.node.transport.member import GateLimits, MemberHost, open_member_host
from meshnode.node.transport.sim import SimHost, SimNetwork, open_sim_network
from trio.testing import MockClock, wait_all_tasks_blocked

ECHO = "/test/echo/1"
OURS = Mesh.create("ours")
THEIRS = Mesh.create("theirs")
LIMITS = GateLimits()


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


class Town:
    """Members of any mesh on one simulated network, all knowing each other's addresses."""

    def __init__(self, network: SimNetwork, stack: AsyncExitStack) -> None:
        self.network = network
        self._stack = stack

    async def member(self, mesh: Mesh, name: str, limits: GateLimits = LIMITS) -> MemberHost:
        inner = self.outsider()
        info = MemberInfo(name, "attic", "meshnode/test")
        host = await self._stack.enter_async_context(
            open_member_host(inner, mesh, info, limits=limits)
        )
        host.set_handler(ECHO, echo)
        return host

    def outsider(self) -> SimHost:
        """A host without any gate."""
        inner = self.network.add_host()
        self.network.introduce()
        return inner


@asynccontextmanager
async def town() -> AsyncIterator[Town]:
    async with open_sim_network(1) as network, AsyncExitStack() as stack:
        yield Town(network, stack)


async def assert_echoes(host: MemberHost, other: MemberHost) -> None:
    stream = await host.open_stream(other.peer_id, ECHO)
    await stream.write(b"hello")
    assert await stream.read_some() == b"hello"
    await stream.close()


async def test_members_meet_and_know_each_other_after_one_proof(
    autojump_clock: MockClock,
) -> None:
    async with town() as here:
        one, other = await here.member(OURS, "one"), await here.member(OURS, "other")
        async with one.events() as ours, other.events() as theirs:
            await assert_echoes(one, other)
            assert await ours.receive() == ConnectionEvent(other.peer_id, connected=True)
            assert await theirs.receive() == ConnectionEvent(one.peer_id, connected=True)
        await assert_echoes(other, one)
        assert one.connected_peers() == {other.peer_id}
        info = other.member_info(one.peer_id)
        assert info is not None
        assert (info.name, info.zone, list(info.addresses)) == ("one", "attic", one.addresses())
        assert other.rejected_streams == 0
        await trio.sleep(2 * LIMITS.unproven_timeout)
        assert one.connected_peers() == {other.peer_id}


async def test_the_addresses_a_member_tells_are_learnt(autojump_clock: MockClock) -> None:
    async with open_sim_network(1) as network, AsyncExitStack() as stack:
        here = Town(network, stack)
        one = await here.member(OURS, "one")
        inner = network.add_host()
        other = await stack.enter_async_context(
            open_member_host(inner, OURS, MemberInfo("other", "attic", "meshnode/test"))
        )
        other.add_addresses(one.peer_id, one.addresses())
        await other.connect(one.peer_id)
        assert one.known_addresses(other.peer_id) == other.addresses()


async def test_a_member_of_another_mesh_gets_a_membership_error_and_is_not_dialled_again(
    autojump_clock: MockClock,
) -> None:
    async with town() as here:
        one, stranger = await here.member(OURS, "one"), await here.member(THEIRS, "stranger")
        with pytest.raises(MembershipError, match="refused us"):
            await stranger.open_stream(one.peer_id, ECHO)
        with pytest.raises(MembershipError, match="Next attempt"):
            await stranger.connect(one.peer_id)
        await wait_all_tasks_blocked()
        assert (one.refused_proofs, one.connected_peers()) == (1, frozenset())
        assert one.member_info(stranger.peer_id) is None


async def test_a_stranger_is_served_no_other_protocol(autojump_clock: MockClock) -> None:
    async with town() as here:
        one, stranger = await here.member(OURS, "one"), here.outsider()
        served = 0

        async def secret(stream: Stream) -> None:
            nonlocal served
            served += 1
            await stream.write(b"secret")

        one.set_handler("/test/secret/1", secret)
        stream = await stranger.open_stream(one.peer_id, "/test/secret/1")
        with pytest.raises(PeerError, match="reset"):
            await stream.read_some()
        assert (served, one.rejected_streams) == (0, 1)


async def test_a_stranger_that_proves_nothing_is_shown_the_door(autojump_clock: MockClock) -> None:
    async with town() as here:
        one, stranger = await here.member(OURS, "one"), here.outsider()
        await stranger.connect(one.peer_id)
        assert one.connected_peers() == frozenset()
        await trio.sleep(LIMITS.unproven_timeout - 0.1)
        assert stranger.connected_peers() == {one.peer_id}
        await trio.sleep(0.2)
        assert stranger.connected_peers() == frozenset()


@pytest.mark.parametrize("noise", [b"", b"\x00", b"\x03abc", b"\xff" * 200, b"\x02\x91\x01"])
async def test_nonsense_instead_of_a_proof_ends_the_connection(
    autojump_clock: MockClock, noise: bytes
) -> None:
    async with town() as here:
        one, stranger = await here.member(OURS, "one"), here.outsider()
        stream = await stranger.open_stream(one.peer_id, PROTOCOL)
        if noise:
            await stream.write(noise)
        await stream.close()
        await trio.sleep(2 * LIMITS.unproven_timeout)
        assert stranger.connected_peers() == frozenset()
        assert one.connected_peers() == frozenset()


async def test_strangers_who_wait_are_bounded_in_number(autojump_clock: MockClock) -> None:
    async with town() as here:
        one = await here.member(OURS, "one", GateLimits(max_unproven=3))
        strangers = [here.outsider() for _ in range(8)]
        for stranger in strangers:
            await stranger.connect(one.peer_id)
            await wait_all_tasks_blocked()
        assert sum(bool(stranger.connected_peers()) for stranger in strangers) == 3


async def test_a_peer_that_never_answers_costs_one_deadline(autojump_clock: MockClock) -> None:
    async with town() as here:
        one, mute = await here.member(OURS, "one"), here.outsider()

        async def never_answer(stream: Stream) -> None:
            await trio.sleep_forever()

        mute.set_handler(PROTOCOL, never_answer)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def attempt() -> None:
                with pytest.raises(PeerError, match="did not prove"):
                    await one.connect(mute.peer_id)

            for _ in range(5):
                nursery.start_soon(attempt)
        assert trio.current_time() - start == pytest.approx(LIMITS.proof_timeout, abs=0.5)


async def test_the_proof_goes_with_the_last_connection(autojump_clock: MockClock) -> None:
    async with town() as here:
        one, other = await here.member(OURS, "one"), await here.member(OURS, "other")
        await one.connect(other.peer_id)
        async with one.events() as events:
            here.network.drop(one.peer_id, other.peer_id)
            assert await events.receive() == ConnectionEvent(other.peer_id, connected=False)
        assert one.member_info(other.peer_id) is None
        assert one.connected_peers() == frozenset()
        await assert_echoes(one, other)


async def test_a_member_that_was_forgotten_is_asked_to_prove_itself_again(
    autojump_clock: MockClock,
) -> None:
    async with town() as here:
        one, other = await here.member(OURS, "one"), await here.member(OURS, "other")
        await one.connect(other.peer_id)
        other._proven.clear()
        await assert_echoes(one, other)
        assert other.member_info(one.peer_id) is not None
        assert other.rejected_streams == 0


async def test_open_meshes_admit_those_who_mean_the_same_one(autojump_clock: MockClock) -> None:
    mesh = Mesh.create("everybody", open=True)
    async with town() as here:
        one, other = await here.member(mesh, "one"), await here.member(mesh, "other")
        stranger = await here.member(Mesh.create("everybody", open=True), "stranger")
        await assert_echoes(one, other)
        with pytest.raises(MembershipError):
            await stranger.connect(one.peer_id)


async def test_both_may_prove_at_the_same_time(autojump_clock: MockClock) -> None:
    async with town() as here:
        one, other = await here.member(OURS, "one"), await here.member(OURS, "other")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(assert_echoes, one, other)
                nursery.start_soon(assert_echoes, other, one)


async def test_a_stream_is_opened_though_the_connection_is_lost_and_made_anew_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with town() as here:
        one, other = await here.member(OURS, "one"), await here.member(OURS, "other")
        await one.connect(other.peer_id)
        inner = here.network.hosts[one.peer_id]
        orderly = inner.open_stream

        async def lose_it(peer: PeerId, protocol: str) -> Stream:
            vars(inner).pop("open_stream")
            here.network.drop(one.peer_id, other.peer_id)
            await wait_all_tasks_blocked()
            await inner.connect(peer)
            raise PeerError("The peer does not speak that: it takes us for a stranger.")

        vars(inner)["open_stream"] = lose_it
        await assert_echoes(one, other)
        assert inner.open_stream == orderly
        assert one.connected_peers() == {other.peer_id}
