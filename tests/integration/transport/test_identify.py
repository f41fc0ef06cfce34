"""Identify and ping between real hosts, honest and hostile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from meshnode import __version__
from meshnode.dht.host import Stream
from meshnode.errors import PeerError
from meshnode.node.transport import identify, ping
from meshnode.node.transport.identify import IDENTIFY_PROTOCOL, PUSH_PROTOCOL
from meshnode.node.transport.identify_wire import (
    MAX_IDENTIFY_BYTES,
    Description,
    encode_description,
)
from meshnode.node.transport.libp2p_host import Libp2pHost
from meshnode.node.transport.ping import PING_PROTOCOL
from meshnode.node.transport.streams import BufferedStream

from .conftest import Hosts, KeyOnly, with_hosts

NOVEL = "/test/novel/1"
FAR = "/ip4/192.0.2.7/tcp/4710"
STRANGER = KeyOnly(bytes(31) + b"\xff").peer_id


async def serve_nothing(stream: Stream) -> None:
    await stream.read_some()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


def sends(*frames: bytes) -> Callable[[Stream], Awaitable[None]]:
    async def serve(stream: Stream) -> None:
        for frame in frames:
            await BufferedStream(stream).write_frame(frame)

    return serve


@with_hosts
async def test_a_host_says_who_and_where_it_is_what_it_speaks_and_where_it_sees_us(
    hosts: Hosts,
) -> None:
    one, other = await hosts.pair()
    other.set_handler(NOVEL, serve_nothing)
    told = await one.identify(other.peer_id)
    assert told.peer == other.peer_id
    assert list(told.listen) == other.addresses()
    assert set(told.protocols) == {IDENTIFY_PROTOCOL, PUSH_PROTOCOL, PING_PROTOCOL, NOVEL}
    assert told.agent == f"meshnode/{__version__}"
    port = one._connections[other.peer_id][0]._muxer._wire._socket.getsockname()[1]
    assert told.observed == f"/ip4/127.0.0.1/tcp/{port}"


@with_hosts
async def test_who_dials_us_is_asked_where_it_listens(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    assert not other.known_addresses(one.peer_id)
    await one.connect(other.peer_id)
    await until(lambda: other.known_addresses(one.peer_id) == one.addresses())


@with_hosts
async def test_a_protocol_learnt_later_is_pushed_to_who_has_asked(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    bystander = await hosts.open()
    bystander.add_addresses(other.peer_id, other.addresses())
    pushed: list[Description] = []

    def listen(host: Libp2pHost) -> None:
        async def take(stream: Stream) -> None:
            pushed.append(await identify._read(BufferedStream(stream)))

        host.set_handler(PUSH_PROTOCOL, take)

    listen(one)
    listen(bystander)
    await bystander.connect(other.peer_id)
    assert NOVEL not in (await one.identify(other.peer_id)).protocols
    other.set_handler(NOVEL, serve_nothing)
    await until(lambda: bool(pushed))
    assert [NOVEL in told.protocols for told in pushed] == [True]


@with_hosts
async def test_what_a_peer_pushes_is_known_as_hearsay(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    stream = BufferedStream(await one.open_stream(other.peer_id, PUSH_PROTOCOL))
    await stream.write_frame(encode_description(Description(one.peer_id, (FAR,))))
    await stream.close()
    await until(lambda: FAR in other.known_addresses(one.peer_id))


@with_hosts
async def test_a_description_in_parts_is_put_together(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    whole = encode_description(Description(other.peer_id, (FAR,), agent="in parts"))
    key = encode_description(Description(other.peer_id, agent="replaced"))
    other.set_handler(IDENTIFY_PROTOCOL, sends(key, whole[38:]))
    told = await one.identify(other.peer_id)
    assert (told.peer, told.listen, told.agent) == (other.peer_id, (FAR,), "in parts")


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        ([encode_description(Description(STRANGER, (FAR,)))], "claims the key of"),
        ([b"\x0a\xff\xff\xff\xff\x0f"], "nobody understands"),
        ([bytes(MAX_IDENTIFY_BYTES + 1)], "announced a frame of 8193 bytes"),
        ([b"\x12\x00" * 2048] * 10, "announced a frame of 4096 bytes"),
        ([], "too early"),
    ],
)
@with_hosts
async def test_a_hostile_description_is_an_error_of_the_peer_and_teaches_nothing(
    hosts: Hosts, frames: list[bytes], complaint: str
) -> None:
    one, other = await hosts.pair()
    other.set_handler(IDENTIFY_PROTOCOL, sends(*frames))
    with pytest.raises(PeerError, match=complaint):
        await one.identify(other.peer_id)
    assert one.known_addresses(other.peer_id) == other.addresses()
    assert await one.ping(other.peer_id) > 0


@with_hosts
async def test_a_description_that_trickles_in_costs_the_deadline(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "_WITHIN", 0.2)
    one, other = await hosts.pair()

    async def trickle(stream: Stream) -> None:
        await stream.write(b"\x7f")
        while True:
            await stream.write(b"\x00")
            await trio.sleep(0.01)

    other.set_handler(IDENTIFY_PROTOCOL, trickle)
    with pytest.raises(PeerError, match=r"within 0\.2 s"):
        await one.identify(other.peer_id)


@with_hosts
async def test_a_ping_that_is_never_answered_costs_the_deadline(hosts: Hosts) -> None:
    one, other = await hosts.pair()

    async def never_answer(stream: Stream) -> None:
        while await stream.read_some():
            pass

    other.set_handler(PING_PROTOCOL, never_answer)
    stream = await one.open_stream(other.peer_id, PING_PROTOCOL)
    with pytest.raises(PeerError, match=r"within 0\.2 s"):
        await ping.ping(stream, timeout=0.2)


@with_hosts
async def test_a_ping_answered_with_other_bytes_is_no_answer(hosts: Hosts) -> None:
    one, other = await hosts.pair()

    async def lie(stream: Stream) -> None:
        await stream.read_some()
        await stream.write(bytes(32))

    other.set_handler(PING_PROTOCOL, lie)
    with pytest.raises(PeerError, match="other bytes"):
        await one.ping(other.peer_id)


@with_hosts
async def test_pings_are_answered_one_after_the_other_and_an_idle_stream_is_let_go(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ping, "_IDLE", 0.3)
    one, other = await hosts.pair()
    stream = BufferedStream(await one.open_stream(other.peer_id, PING_PROTOCOL))
    for number in range(3):
        sent = bytes([number]) * 32
        await stream.write(sent)
        assert await stream.read_exactly(32) == sent
    with trio.fail_after(10), pytest.raises(PeerError, match="reset"):
        await stream.read_exactly(1)


@with_hosts
async def test_whom_we_have_told_is_forgotten_with_the_connection(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    await one.identify(other.peer_id)
    assert list(other._identify._told) == [one.peer_id]
    await one.disconnect(other.peer_id)
    await until(lambda: not other._identify._told)
