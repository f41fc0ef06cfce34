"""What other implementations ask of any peer, and what any of them offers."""

from __future__ import annotations

import secrets

import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from meshnode.node.transport.streams import BufferedStream

from .conftest import Connected, link
from .foreign import JS, ForeignError, ForeignProcess, js_command, running
from .roles import ECHO
from .services import IDENTIFY, PING, PING_SIZE, answer_pings, key_of


async def test_their_ping_service_answers_us(connected: Connected) -> None:
    async with connected() as link:
        stream = BufferedStream(await link.ours.open_stream(PING))
        for _ in range(3):
            sent = secrets.token_bytes(PING_SIZE)
            await stream.write(sent)
            assert await stream.read_exactly(PING_SIZE) == sent
        await stream.close()


async def test_their_identify_service_names_the_peer_we_authenticated(
    connected: Connected,
) -> None:
    async with connected() as link:
        stream = BufferedStream(await link.ours.open_stream(IDENTIFY))
        told = Identify.FromString(await stream.read_frame(65536))
        assert await stream.at_end()
        assert key_of(told) == link.ours.toward.ed25519_public_key
        assert ECHO in told.protocols


async def test_an_unknown_protocol_is_refused_by_either_and_costs_no_more(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        for _ in range(5):
            assert await side.play("asks_for_unknown") == "refused"
        assert await side.play("echo", streams=1, size=1000, pieces=[100]) == 1000


@pytest.mark.parametrize("dialler", ["we dial", "they dial"])
async def test_a_js_ping_is_refused_cleanly_where_ping_is_not_served(
    js_process: ForeignProcess, dialler: str
) -> None:
    async with link(js_process, dialler) as linked:
        with pytest.raises(ForeignError, match="UnsupportedProtocolError"):
            await linked.theirs.play("ping")
        assert await linked.theirs.play("is_connected")
        await linked.theirs.play("echo", streams=1, size=1000, pieces=[100])


@pytest.mark.parametrize("dialler", ["we dial", "they dial"])
async def test_a_js_ping_is_answered_where_ping_is_served(
    js_process: ForeignProcess, dialler: str
) -> None:
    async with link(js_process, dialler) as linked:
        linked.ours.host.set_handler(PING, answer_pings)
        milliseconds = await linked.theirs.play("ping")
        assert isinstance(milliseconds, int)


@pytest.mark.usefixtures("js_installed")
async def test_the_js_connection_monitor_is_content_with_a_refused_ping() -> None:
    """js-libp2p asks for /ipfs/ping on every connection and drops those that fail it."""
    with running(js_command("--monitor", "100"), JS) as process:
        async with link(process, "they dial") as linked:
            async with linked.ours.host.events() as events:
                with trio.move_on_after(1):
                    await events.receive()
                    raise AssertionError("the connection was dropped")
            assert await linked.theirs.play("is_connected")
