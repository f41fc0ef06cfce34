"""The life of a connection with another implementation, from handshake to loss."""

from __future__ import annotations

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host
from meshnode.node.transport.limits import HostLimits

from .conftest import LOOPBACK, Connected, link
from .foreign import ForeignError, ForeignProcess
from .roles import ECHO

KEEPALIVE = 0.2
IMPATIENT = HostLimits(keepalive=KEEPALIVE)


async def test_an_idle_peer_that_answers_our_keepalive_stays_connected(
    connected: Connected,
) -> None:
    async with connected(IMPATIENT) as link, link.ours.host.events() as events:
        with trio.move_on_after(6 * KEEPALIVE):
            await events.receive()
            raise AssertionError("the connection was dropped")
        assert await link.theirs.play("is_connected")
        assert await link.theirs.play("echo", streams=1, size=1000, pieces=[100]) == 1000


async def test_a_peer_that_proves_to_be_another_one_is_not_connected_to(
    process: ForeignProcess,
) -> None:
    impostor = Identity.generate().peer_id
    async with process.talking() as theirs, open_libp2p_host(Identity.generate()) as host:
        host.add_addresses(impostor, [theirs.address])
        with pytest.raises(PeerError, match="handshake"):
            await host.connect(impostor)
        assert not host.connected_peers()


async def test_others_refuse_us_when_we_are_not_whom_they_meant(process: ForeignProcess) -> None:
    meant = str(Identity.generate().peer_id)
    async with (
        process.talking() as theirs,
        open_libp2p_host(Identity.generate(), listen=LOOPBACK) as host,
    ):
        with pytest.raises(ForeignError):
            await theirs.play("dial", address=host.addresses()[0], peer=meant)
        assert not await theirs.play("is_connected", peer=meant)


async def test_hanging_up_is_seen_by_the_other_side(connected: Connected) -> None:
    async with connected() as link, link.ours.host.events() as events:
        stream = await link.ours.open_stream(ECHO)
        await link.theirs.play("hang_up")
        assert not (await events.receive()).connected
        with pytest.raises(PeerError):
            await stream.write(b"to nobody")


async def test_our_disconnecting_is_seen_by_the_other_side(connected: Connected) -> None:
    async with connected() as link:
        await link.ours.host.disconnect(link.ours.toward)
        await link.theirs.play("wait_disconnected")


async def test_a_killed_peer_is_a_lost_connection_and_no_clean_end(
    own_process: ForeignProcess,
) -> None:
    async with link(own_process, "they dial") as linked, linked.ours.host.events() as events:
        stream = await linked.ours.open_stream(ECHO)
        await stream.write(b"hello")
        assert await stream.read_some() == b"hello"
        own_process.stop()
        with pytest.raises(PeerError):
            await stream.read_some()
        assert not (await events.receive()).connected
        assert PeerId.parse(linked.theirs.peer) not in linked.ours.host.connected_peers()
