"""What other implementations ask of any peer, and what any of them offers."""

from __future__ import annotations

import pytest
import trio
from meshnode import __version__
from meshnode.dht.host import Stream
from meshnode.node.identity import MemberInfo, Mesh
from meshnode.node.transport.identify import IDENTIFY_PROTOCOL, PUSH_PROTOCOL
from meshnode.node.transport.member import open_member_host
from meshnode.node.transport.ping import PING_PROTOCOL, serve_pings

from .conftest import Connected, link
from .foreign import JS, ForeignError, ForeignProcess, js_command, running
from .roles import ECHO

NOVEL = "/test/novel/1"


async def refuse(stream: Stream) -> None:
    await stream.reset()


async def test_their_ping_service_answers_us(connected: Connected) -> None:
    async with connected() as link:
        for _ in range(3):
            assert await link.ours.host.ping(link.ours.toward) > 0


async def test_their_identify_names_the_peer_we_authenticated_and_where_it_listens(
    connected: Connected,
) -> None:
    async with connected() as link:
        told = await link.ours.host.identify(link.ours.toward)
        assert told.peer == link.ours.toward
        assert ECHO in told.protocols
        assert link.theirs.address in told.listen
        assert told.observed is not None
        assert told.observed.startswith("/ip4/127.0.0.1/tcp/")
        assert told.agent
        assert link.theirs.address in link.ours.host.known_addresses(link.ours.toward)


async def test_our_ping_service_answers_them(connected: Connected) -> None:
    async with connected() as link:
        assert await link.theirs.play("ping") is not None
        assert await link.theirs.play("is_connected")


async def test_our_identify_tells_them_who_and_where_we_are_and_what_we_speak(
    connected: Connected,
) -> None:
    async with connected() as link:
        host = link.ours.host
        told = await link.theirs.play("identify")
        assert isinstance(told, dict)
        assert told["peer"] == str(host.peer_id)
        assert told["agent"] == f"meshnode/{__version__}"
        assert told["listen"] == host.addresses()
        assert {ECHO, IDENTIFY_PROTOCOL, PUSH_PROTOCOL, PING_PROTOCOL} <= set(told["protocols"])
        assert told["observed"].startswith("/ip4/127.0.0.1/tcp/")


async def test_they_hear_of_a_protocol_we_learn_later(connected: Connected) -> None:
    async with connected() as link:
        await link.theirs.play("identify")
        link.ours.host.set_handler(NOVEL, refuse)
        assert await link.theirs.play("wait_speaks", protocol=NOVEL)


async def test_an_unknown_protocol_is_refused_by_either_and_costs_no_more(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        for _ in range(5):
            assert await side.play("asks_for_unknown") == "refused"
        assert await side.play("echo", streams=1, size=1000, pieces=[100]) == 1000


@pytest.mark.usefixtures("js_installed")
async def test_the_js_connection_monitor_is_content_with_us() -> None:
    """js-libp2p opens a stream for ping on every connection, and drops those that fail it.

    It also drops those where one ping is still under way when the next is due, so not too often.
    """
    answered = trio.Semaphore(0)

    async def count(stream: Stream) -> None:
        await serve_pings(stream)
        answered.release()

    with running(js_command("--monitor", "1000"), JS) as process:
        async with link(process, "they dial") as linked:
            linked.ours.host.set_handler(PING_PROTOCOL, count)
            with trio.fail_after(30):
                for _ in range(2):
                    await answered.acquire()
            assert await linked.theirs.play("is_connected")


@pytest.mark.parametrize("dialler", ["we dial", "they dial"])
async def test_a_closed_mesh_tells_js_nothing(js_process: ForeignProcess, dialler: str) -> None:
    info = MemberInfo("node", "attic", "meshnode/test")
    async with (
        link(js_process, dialler) as linked,
        open_member_host(linked.ours.host, Mesh.create("closed"), info),
    ):
        for attempt in ("ping", "identify"):
            with pytest.raises(ForeignError, match="UnsupportedProtocolError"):
                await linked.theirs.play(attempt)
