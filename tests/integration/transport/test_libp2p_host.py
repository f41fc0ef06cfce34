"""Libp2pHost on loopback: what every user of a `Host` relies on."""

from __future__ import annotations

import gc
import os
import socket

import pytest
import trio
from meshnode.dht.host import ConnectionEvent, Stream
from meshnode.errors import PeerError, RefusedError, UsageError
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.streams import BufferedStream, open_stream_pool

from .conftest import Hosts, KeyOnly, opened, with_hosts

ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def send(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.close()


async def read_all(stream: Stream) -> bytes:
    parts = []
    while data := await stream.read_some():
        parts.append(data)
    return b"".join(parts)


async def assert_echoes(host: Libp2pHost, other: Libp2pHost) -> None:
    stream = await host.open_stream(other.peer_id, ECHO)
    await send(stream, b"still here")
    assert await read_all(stream) == b"still here"


@with_hosts
async def test_megabytes_come_back_and_the_stream_ends(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    sent = os.urandom(3_000_000)
    stream = await one.open_stream(other.peer_id, ECHO)
    assert (stream.peer, stream.protocol) == (other.peer_id, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, stream, sent)
        assert await read_all(stream) == sent


@with_hosts
async def test_both_sides_see_the_connection_come_and_go(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    async with one.events() as ours, other.events() as theirs:
        await one.connect(other.peer_id)
        assert await ours.receive() == ConnectionEvent(other.peer_id, connected=True)
        assert await theirs.receive() == ConnectionEvent(one.peer_id, connected=True)
        assert other.connected_peers() == {one.peer_id}
        await one.disconnect(other.peer_id)
        assert await ours.receive() == ConnectionEvent(other.peer_id, connected=False)
        assert await theirs.receive() == ConnectionEvent(one.peer_id, connected=False)
    assert not one.connected_peers()
    assert not other.connected_peers()


@with_hosts
async def test_streams_can_be_opened_from_the_side_that_was_dialled(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    one.set_handler(ECHO, echo)
    async with other.events() as events:
        await one.connect(other.peer_id)
        await events.receive()
    await assert_echoes(other, one)


@with_hosts
async def test_many_callers_share_one_dial(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one.connect, other.peer_id)
    assert len(one._connections[other.peer_id]) == 1


@with_hosts
async def test_a_cancelled_caller_does_not_spoil_the_dial_for_the_others(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    async with trio.open_nursery() as nursery:
        hasty = trio.CancelScope()

        async def give_up() -> None:
            with hasty:
                await one.connect(other.peer_id)

        nursery.start_soon(give_up)
        nursery.start_soon(one.connect, other.peer_id)
        await trio.testing.wait_all_tasks_blocked()
        hasty.cancel()
    assert one.connected_peers() == {other.peer_id}


@with_hosts
async def test_an_unknown_protocol_is_a_peer_error_and_costs_nothing_else(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    with pytest.raises(PeerError, match="does not speak /test/other/1"):
        await one.open_stream(other.peer_id, "/test/other/1")
    await assert_echoes(one, other)


@with_hosts
async def test_a_peer_that_is_not_who_was_dialled_is_refused(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    third = await hosts.open()
    one.add_addresses(third.peer_id, other.addresses())
    await third.disconnect(one.peer_id)
    with pytest.raises(PeerError, match="handshake"):
        await one.connect(third.peer_id)
    assert not one.connected_peers()


@with_hosts
async def test_nobody_home_is_a_peer_error_then_back_off_until_something_new_is_known(
    hosts: Hosts,
) -> None:
    one, other = await hosts.open(), await hosts.open()
    with pytest.raises(PeerError, match="No address"):
        await one.connect(other.peer_id)
    with pytest.raises(PeerError, match="Next attempt"):
        await one.connect(other.peer_id)
    one.add_addresses(other.peer_id, other.addresses())
    await one.connect(other.peer_id)


@with_hosts
async def test_an_inbound_connection_ends_the_back_off(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.add_addresses(one.peer_id, ["/ip4/127.0.0.1/tcp/1"])
    with pytest.raises(PeerError, match="connection refused"):
        await other.connect(one.peer_id)
    async with other.events() as events:
        await one.connect(other.peer_id)
        await events.receive()
    await other.connect(one.peer_id)


@with_hosts
async def test_an_address_that_never_answers_costs_the_dial_deadline(hosts: Hosts) -> None:
    one = await hosts.open(HostLimits(dial_timeout=0.3))
    silent = socket.create_server(("127.0.0.1", 0))
    stranger = KeyOnly(bytes(31) + b"\xff").peer_id
    one.add_addresses(stranger, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"])
    with silent, pytest.raises(PeerError, match=r"silent for 0\.3 s"):
        await one.connect(stranger)


@with_hosts
async def test_the_loss_of_the_connection_is_never_a_clean_end_of_a_stream(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    failures: list[str] = []
    served = trio.Event()

    async def wait_for_bytes(stream: Stream) -> None:
        try:
            await stream.read_some()
        except PeerError as error:
            failures.append(error.message)
        served.set()

    other.set_handler("/test/wait/1", wait_for_bytes)
    stream = await one.open_stream(other.peer_id, "/test/wait/1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.disconnect, other.peer_id)
        with pytest.raises(PeerError, match="closed here"):
            await stream.read_some()
    await served.wait()
    assert len(failures) == 1


@with_hosts
async def test_a_reset_is_never_a_clean_end_of_a_stream(hosts: Hosts) -> None:
    one, other = await hosts.pair()

    async def reset(stream: Stream) -> None:
        await stream.read_some()
        await stream.reset()

    other.set_handler("/test/reset/1", reset)
    stream = await one.open_stream(other.peer_id, "/test/reset/1")
    await stream.write(b"x")
    with pytest.raises(PeerError, match="reset"):
        await stream.read_some()


@with_hosts
async def test_a_taken_port_is_refused_with_the_port_and_the_key_to_change(hosts: Hosts) -> None:
    first = await hosts.open()
    port = first.addresses()[0].rpartition("/")[2]
    with pytest.raises(RefusedError) as caught:
        await hosts.open(listen=first.addresses()[0])
    assert port in caught.value.message
    assert port in caught.value.hint
    assert "network.listen" in caught.value.hint


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1", "/dns/localhost/tcp/0", "nonsense"])
@with_hosts
async def test_an_address_that_cannot_be_listened_on_is_a_usage_error(
    hosts: Hosts, address: str
) -> None:
    with pytest.raises(UsageError, match=r"network\.listen"):
        await hosts.open(listen=address)


@with_hosts
async def test_a_foreign_address_to_listen_on_is_refused(hosts: Hosts) -> None:
    with pytest.raises(RefusedError, match="Cannot listen on /ip4/192"):
        await hosts.open(listen="/ip4/192.0.2.1/tcp/0")


async def test_announced_addresses_replace_the_bound_ones() -> None:
    identity = KeyOnly(bytes(32))
    async with open_libp2p_host(identity, announce=["/dns/example.org/tcp/4001"]) as host:
        assert host.addresses() == ["/dns/example.org/tcp/4001"]
    with pytest.raises(UsageError, match=r"network\.announce"):
        async with open_libp2p_host(identity, announce=["/ip4/0.0.0.0/tcp/4001"]):
            pass


async def test_errors_of_the_block_come_out_as_they_are() -> None:
    with pytest.raises(KeyError):
        async with open_libp2p_host(KeyOnly(bytes(32)), listen=["/ip4/127.0.0.1/tcp/0"]):
            raise KeyError


@with_hosts
async def test_pooled_requests_reuse_a_stream_and_survive_a_reconnect(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    opened_streams = 0

    async def answer(inner: Stream) -> None:
        nonlocal opened_streams
        opened_streams += 1
        stream = BufferedStream(inner)
        while not await stream.at_end():
            await stream.write_frame((await stream.read_frame(1000))[::-1])

    other.set_handler("/test/answer/1", answer)
    async with open_stream_pool(one) as pool:
        for _ in range(3):
            reply = await pool.request(other.peer_id, "/test/answer/1", b"abc", max_response=9)
            assert reply == b"cba"
        assert opened_streams == 1
        await other.disconnect(one.peer_id)
        reply = await pool.request(other.peer_id, "/test/answer/1", b"xyz", max_response=9)
        assert reply == b"zyx"


async def test_closing_leaves_no_task_and_no_descriptor_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def use() -> None:
        async with opened() as hosts:
            hub = await hosts.open()
            hub.set_handler(ECHO, echo)
            for _ in range(10):
                spoke = await hosts.open()
                spoke.add_addresses(hub.peer_id, hub.addresses())
                await assert_echoes(spoke, hub)
                await spoke.open_stream(hub.peer_id, ECHO)

    await use()  # whatever the first use in a process opens for good
    before = trio.lowlevel.current_statistics().tasks_living, descriptors()
    await use()
    assert (trio.lowlevel.current_statistics().tasks_living, descriptors()) == before


@with_hosts
async def test_opening_and_closing_streams_for_long_grows_nothing(hosts: Hosts) -> None:
    one, other = await hosts.pair(HostLimits(max_streams_per_peer=8))
    other.set_handler(ECHO, echo)

    async def cycles(count: int) -> tuple[int, int, int, int]:
        for number in range(count):
            stream = await one.open_stream(other.peer_id, ECHO)
            await stream.write(b"x")
            assert await stream.read_some() == b"x"
            await (stream.reset() if number % 2 else stream.close())
        with trio.fail_after(5):
            while other._connections[one.peer_id][0]._serving:
                await trio.lowlevel.checkpoint()
        gc.collect()
        objects = len(gc.get_objects())
        tasks = trio.lowlevel.current_statistics().tasks_living
        streams = one._connections[other.peer_id][0]._muxer.streams
        return tasks, len(os.listdir("/proc/self/fd")), streams, objects

    *before, objects_before = await cycles(300)
    *after, objects_after = await cycles(1000)
    assert after == before
    assert objects_after < objects_before + 1000, "an object was kept for each stream"


@with_hosts
async def test_a_peer_that_breaks_the_protocol_is_disconnected_and_counted(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    async with other.events() as events:
        await one.connect(other.peer_id)
        await events.receive()
        core = one._connections[other.peer_id][0]._muxer._core
        core.outbox.control.append(b"\x07" + bytes(11))
        one._connections[other.peer_id][0]._muxer.flush()
        assert await events.receive() == ConnectionEvent(one.peer_id, connected=False)
    assert other.counts.violations == {"bad_version": 1}


@with_hosts
async def test_a_peer_that_says_goodbye_is_dialled_again_and_its_streams_live_on(
    hosts: Hosts,
) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    stream = await one.open_stream(other.peer_id, ECHO)
    await stream.write(b"before")
    assert await stream.read_some() == b"before"
    muxer = other._connections[one.peer_id][0]._muxer
    muxer._core.go_away()
    muxer.flush()
    first = one._connections[other.peer_id][0]
    with trio.fail_after(5):
        while first.usable:
            await trio.lowlevel.checkpoint()
    await assert_echoes(one, other)
    await stream.write(b"after")
    assert await stream.read_some() == b"after"
    assert one._connections[other.peer_id][0] is first
    await stream.reset()
    with trio.fail_after(5):
        while not first.closed:
            await trio.lowlevel.checkpoint()
    await assert_echoes(one, other)
    assert len(one._connections[other.peer_id]) == 1


@with_hosts
async def test_refusing_streams_over_and_over_ends_the_connection(hosts: Hosts) -> None:
    one, other = await hosts.open(), await hosts.open(HostLimits(max_streams_per_peer=2))
    one.add_addresses(other.peer_id, other.addresses())
    other.set_handler(ECHO, echo)
    for _ in range(2):
        await one.open_stream(other.peer_id, ECHO)
    muxer = one._connections[other.peer_id][0]._muxer
    with trio.fail_after(20):
        for number in range(1, 1026):
            # As a hostile peer would, whatever the answers are; each is accepted, then refused.
            muxer._core.open()
            muxer.flush()
            while other.counts.refused < number:
                await trio.lowlevel.checkpoint()
        while other.connected_peers():
            await trio.lowlevel.checkpoint()
    assert other.counts.violations == {"stream_flood": 1}
    assert other.counts.refused == 1025


@with_hosts
async def test_why_a_handshake_failed_is_said_as_it_is(hosts: Hosts) -> None:
    one = await hosts.open()
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    stranger = KeyOnly(bytes(31) + b"\xfe").peer_id
    one.add_addresses(stranger, [f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"])

    async def answer(stream: trio.SocketStream) -> None:
        with_reset = (1).to_bytes(4, "little") + bytes(4)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, with_reset)

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, answer, [listener])
        with pytest.raises(PeerError, match=r"\(the connection was lost \([a-z ]+\)\)"):
            await one.connect(stranger)
        nursery.cancel_scope.cancel()
