"""Faults of the library: what one stream or one peer can do to a host.

Shown on py-libp2p 0.8.1, then absent here. When a test named `test_stock_...` fails, the library
has been mended.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.yamux_frames import DATA, SYN, WINDOW_UPDATE, frame

from .attacker import IDENTITY, attack
from .conftest import Hosts, with_hosts
from .stock_library import (
    ECHO,
    assert_echoes,
    echo,
    stock_dial,
    stock_host,
    stock_port,
    stock_survives,
    stock_yamux,
)

INVALID_UTF8 = b"\x03\xff\xfe\n"
FRAME = bytes(range(256)) * 16384
"""4 MiB."""


async def test_stock_a_failing_handler_ends_the_whole_host() -> None:
    async def attack(attacker: IHost, victim: IHost) -> None:
        async def fail(stream: INetStream) -> None:
            raise ValueError("a bug in a handler")

        victim.set_stream_handler("/test/fail/1", fail)  # type: ignore[arg-type]
        await attacker.new_stream(victim.get_id(), ["/test/fail/1"])  # type: ignore[list-item]

    assert not await stock_survives(attack)


@with_hosts
async def test_a_failing_handler_ends_its_stream_alone(hosts: Hosts) -> None:
    async def fail(stream: Stream) -> None:
        raise ValueError("a bug in a handler")

    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    other.set_handler("/test/fail/1", fail)
    stream = await one.open_stream(other.peer_id, "/test/fail/1")
    with pytest.raises(PeerError, match="reset"):
        await stream.read_some()
    assert other.counts.failed == 1
    await assert_echoes(one, other)


async def test_stock_invalid_utf8_from_a_peer_ends_the_whole_host() -> None:
    async def attack(attacker: IHost, victim: IHost) -> None:
        (connection,) = attacker.get_network().get_connections(victim.get_id())
        stream = await connection.muxed_conn.open_stream()
        await stream.write(INVALID_UTF8)

    assert not await stock_survives(attack)


@with_hosts
async def test_invalid_utf8_from_a_peer_ends_its_stream_alone(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    await one.connect(other.peer_id)
    stream = one._connections[other.peer_id][0]._muxer.open()
    await stream.write(INVALID_UTF8)
    assert await stream.read(100) == b"\x13/multistream/1.0.0\n"
    with pytest.raises(PeerError, match="reset"):
        await stream.read(100)
    await assert_echoes(one, other)


# --- limits and silence ---------------------------------------------------------------------------


async def test_stock_the_257th_stream_waits_and_says_nothing() -> None:
    async with stock_host() as other, stock_host() as one:
        await stock_dial(one, other)
        yamux = stock_yamux(one, other)
        assert yamux.stream_backlog_limit == 256
        while yamux.stream_backlog_semaphore.value:
            # As an open stream does; real ones come and go by themselves on a slow machine.
            yamux.stream_backlog_semaphore.acquire_nowait()
        with trio.move_on_after(0.3) as stuck:
            await yamux.open_stream()
        assert stuck.cancelled_caught


def test_we_stay_below_the_streams_at_which_the_library_blocks() -> None:
    with pytest.raises(ValueError, match="max_streams_per_peer"):
        HostLimits(max_streams_per_peer=256)


@with_hosts
async def test_too_many_streams_are_an_error_at_once_on_either_side(hosts: Hosts) -> None:
    one = await hosts.open(HostLimits(max_streams_per_peer=100))
    other = await hosts.open(HostLimits(max_streams_per_peer=5))
    one.add_addresses(other.peer_id, other.addresses())
    other.set_handler(ECHO, echo)
    streams = [await one.open_stream(other.peer_id, ECHO) for _ in range(5)]
    with pytest.raises(PeerError):
        await one.open_stream(other.peer_id, ECHO)
    assert other.counts.refused == 1
    for stream in streams:
        await stream.close()
        assert await stream.read_some() == b""
    for _ in range(20):
        await assert_echoes(one, other)
    one._limits = one._connections[other.peer_id][0]._limits = HostLimits(max_streams_per_peer=1)
    await one.open_stream(other.peer_id, ECHO)
    with pytest.raises(PeerError, match="open already"):
        await one.open_stream(other.peer_id, ECHO)


@with_hosts
async def test_streams_that_never_name_a_protocol_are_bounded_and_hold_nobody_up(
    hosts: Hosts,
) -> None:
    one, victim = await hosts.pair(HostLimits(max_streams_per_peer=50))
    other = await hosts.open()
    other.add_addresses(victim.peer_id, victim.addresses())
    victim.set_handler(ECHO, echo)
    await one.connect(victim.peer_id)
    muxer = one._connections[victim.peer_id][0]._muxer
    silent = [muxer.open() for _ in range(200)]
    await assert_echoes(other, victim)
    with trio.fail_after(10):
        while victim.counts.refused < len(silent) - 50:
            await trio.lowlevel.checkpoint()


@with_hosts
async def test_a_reader_that_never_reads_fails_the_writer_and_no_other_stream(hosts: Hosts) -> None:
    async def never_read(stream: Stream) -> None:
        await trio.sleep(math.inf)

    one, other = await hosts.pair(HostLimits(stall_timeout=0.3))
    other.set_handler(ECHO, echo)
    other.set_handler("/test/stalled/1", never_read)
    stream = await one.open_stream(other.peer_id, "/test/stalled/1")
    with pytest.raises(PeerError, match="window"):
        await stream.write(FRAME * 5)
    await assert_echoes(one, other)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def library_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """What the library's Yamux logs, whatever a test before has set up for all logging."""
    logger = logging.getLogger("libp2p.stream_muxer.yamux.yamux")
    monkeypatch.setattr(logger, "disabled", False)
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


async def test_stock_a_peer_may_overrun_its_window_and_the_log_is_where_that_ends(
    library_log: pytest.LogCaptureFixture,
) -> None:
    async with stock_host() as victim:
        attacker = await attack(stock_port(victim), PeerId.from_bytes(victim.get_id().to_bytes()))
        await attacker.send(frame(WINDOW_UPDATE, SYN, 1, 0))
        for _ in range(16):
            await attacker.send(frame(DATA, 0, 1, 65536) + bytes(65536))
        network = victim.get_network()
        name = ID(bytes(IDENTITY.peer_id))
        with trio.fail_after(20):
            while not (connections := network.get_connections(name)):  # noqa: ASYNC110
                await trio.sleep(0.01)
            yamux = connections[0].muxed_conn
            while len(yamux.stream_buffers.get(1, b"")) < 3 * 262_144:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert network.get_connections(name), "still connected"
            # On stderr, in a program that has not set up logging.
            while not any("window" in text for text in warnings(library_log)):  # noqa: ASYNC110
                await trio.sleep(0.01)
        attacker.wire.close()


@with_hosts
async def test_a_peer_that_overruns_its_window_is_gone_without_a_warning(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    victim = await hosts.open()
    attacker = await attack(int(victim.addresses()[0].rpartition("/")[2]), victim.peer_id)
    await attacker.send(frame(DATA, SYN, 1, 1 << 24))
    with trio.fail_after(20):
        while not victim.counts.violations["window_overrun"]:
            await trio.lowlevel.checkpoint()
    attacker.wire.close()
    assert warnings(caplog) == []


async def test_stock_a_reset_looks_like_a_clean_end() -> None:
    async def reset(stream: INetStream) -> None:
        await stream.read(1)
        await stream.reset()

    async with stock_host() as other, stock_host() as one:
        other.set_stream_handler("/test/reset/1", reset)  # type: ignore[arg-type]
        await stock_dial(one, other)
        stream = await one.new_stream(other.get_id(), ["/test/reset/1"])  # type: ignore[list-item]
        await stream.write(b"x")
        with pytest.raises(StreamEOF):
            await stream.read(1)


@with_hosts
async def test_a_reset_is_an_error(hosts: Hosts) -> None:
    async def reset(stream: Stream) -> None:
        await stream.read_some()
        await stream.reset()

    one, other = await hosts.pair()
    other.set_handler("/test/reset/1", reset)
    stream = await one.open_stream(other.peer_id, "/test/reset/1")
    await stream.write(b"x")
    with pytest.raises(PeerError, match="reset"):
        await stream.read_some()
