"""Peers that mean harm, on real sockets: each is disconnected, counted, and costs nobody else."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from meshnode.dht.host import Stream
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_host import Libp2pHost
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.yamux_frames import (
    DATA,
    FIN,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    frame,
)

from .attacker import HEADER, IDENTITY, Attacker, attack, dial
from .conftest import Hosts, with_hosts

ECHO = "/test/echo/1"
POUR = "/test/pour/1"
FAR = 0xFFFFFFFF


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def pour(stream: Stream) -> None:
    await stream.write(bytes(1 << 20))


def port_of(host: Libp2pHost) -> int:
    return int(host.addresses()[0].rpartition("/")[2])


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def attacked(
    hosts: Hosts, limits: HostLimits | None = None, *, receive_buffer: int | None = None
) -> AsyncIterator[tuple[Attacker, Libp2pHost]]:
    """An attacker and its victim; afterwards the victim serves others as before."""
    victim = await hosts.open(limits)
    victim.set_handler(ECHO, echo)
    victim.set_handler(POUR, pour)
    attacker = await attack(port_of(victim), victim.peer_id, receive_buffer=receive_buffer)
    await until(lambda: IDENTITY.peer_id in victim.connected_peers())
    try:
        yield attacker, victim
    finally:
        attacker.wire.close()
    await assert_still_serves(victim, hosts)


async def assert_still_serves(victim: Libp2pHost, hosts: Hosts) -> None:
    bystander = await hosts.open()
    bystander.add_addresses(victim.peer_id, victim.addresses())
    stream = await bystander.open_stream(victim.peer_id, ECHO)
    await stream.write(b"still here")
    assert await stream.read_some() == b"still here"


async def assert_disconnected(victim: Libp2pHost, reason: str) -> None:
    await until(lambda: IDENTITY.peer_id not in victim.connected_peers())
    assert victim.counts.violations[reason] == 1
    assert victim.stats()[f"transport_violations_{reason}"] == 1


@pytest.mark.parametrize(
    ("reason", "frames"),
    [
        ("window_overrun", [frame(DATA, SYN, 1, FAR)]),
        ("data_after_close", [frame(WINDOW_UPDATE, SYN | FIN, 1, 0), frame(DATA, 0, 1, 1) + b"x"]),
        ("unknown_stream", [frame(DATA, 0, 1, 1) + b"x"]),
        ("bad_version", [b"\x07" + frame(DATA, SYN, 1, 0)[1:]]),
        ("bad_type", [frame(0x66, 0, 1, 0)]),
        ("bad_parity", [frame(DATA, SYN, 2, 0)]),
        ("id_reused", [frame(DATA, SYN, 1, 0), frame(DATA, SYN, 1, 0)]),
        ("window_overflow", [frame(WINDOW_UPDATE, SYN, 1, FAR), frame(WINDOW_UPDATE, 0, 1, FAR)]),
    ],
)
@with_hosts
async def test_who_breaks_the_rules_of_the_muxer_is_disconnected(
    hosts: Hosts, reason: str, frames: list[bytes]
) -> None:
    async with attacked(hosts) as (attacker, victim):
        await attacker.send(b"".join(frames))
        await assert_disconnected(victim, reason)


@with_hosts
async def test_who_sends_forged_frames_is_disconnected(hosts: Hosts) -> None:
    async with attacked(hosts) as (attacker, victim):
        await attacker.wire.send_all(b"\xff\xff" + bytes(65535), 5.0)
        await assert_disconnected(victim, "bad_noise_frame")


@with_hosts
async def test_who_opens_and_resets_streams_without_end_is_disconnected(hosts: Hosts) -> None:
    async with attacked(hosts) as (attacker, victim):
        rush = [
            frame(WINDOW_UPDATE, flag, 2 * number + 1, 0)
            for number in range(2000)
            for flag in (SYN, RST)
        ]
        with suppress(PeerError):
            await attacker.send(b"".join(rush))
        await assert_disconnected(victim, "stream_flood")


@with_hosts
async def test_who_opens_more_streams_than_allowed_is_served_that_many_then_disconnected(
    hosts: Hosts,
) -> None:
    async with attacked(hosts, HostLimits(max_streams_per_peer=8)) as (attacker, victim):
        served = 0
        with suppress(PeerError):
            for batch in range(200):
                first = 1 + 64 * batch
                await attacker.send(
                    b"".join(frame(WINDOW_UPDATE, SYN, first + 2 * n, 0) for n in range(32))
                )
                for connection in victim._connections.get(IDENTITY.peer_id, []):
                    served = max(served, connection._serving)
        await assert_disconnected(victim, "stream_flood")
        assert served <= 8


@with_hosts
async def test_who_gives_no_credit_for_ever_is_disconnected(hosts: Hosts) -> None:
    async with (
        attacked(hosts, HostLimits(stall_timeout=0.1)) as (attacker, victim),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(attacker.drain)
        given_up = victim.counts.violations
        for number in range(4):
            await attacker.request(2 * number + 1, POUR)
            await until(lambda so_far=number: given_up["no_credit"] > so_far)  # type: ignore[misc]
        await assert_disconnected(victim, "window_shut")
        assert given_up["no_credit"] == 4


@with_hosts
async def test_who_asks_for_answers_and_takes_none_is_disconnected(hosts: Hosts) -> None:
    async with attacked(hosts, receive_buffer=4096) as (attacker, victim):
        pings = b"".join(frame(PING, SYN, 0, number) for number in range(5000))
        with suppress(PeerError):
            for _ in range(500):
                await attacker.send(pings)
        await assert_disconnected(victim, "control_flood")


# --- before anybody is proven ---------------------------------------------------------------------


async def assert_closed(stream: trio.SocketStream) -> None:
    """Read up to the end; a reset is one too."""
    with trio.fail_after(20), suppress(trio.BrokenResourceError):
        while await stream.receive_some(4096):
            pass


@with_hosts
async def test_who_never_speaks_is_shown_the_door(hosts: Hosts) -> None:
    victim = await hosts.open(HostLimits(negotiation_timeout=0.2))
    victim.set_handler(ECHO, echo)
    async with await dial(port_of(victim)) as silent:
        await assert_closed(silent)
    assert victim.stats()["transport_handshakes_late"] == 1
    await assert_still_serves(victim, hosts)


@with_hosts
async def test_a_handshake_that_trickles_in_gets_no_longer_than_one_that_does_not_come(
    hosts: Hosts,
) -> None:
    victim = await hosts.open(HostLimits(negotiation_timeout=0.3))
    async with await dial(port_of(victim)) as stream, trio.open_nursery() as nursery:

        async def trickle() -> None:
            with suppress(trio.BrokenResourceError):
                for byte in HEADER * 1000:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.02)

        nursery.start_soon(trickle)
        await assert_closed(stream)
        nursery.cancel_scope.cancel()
    assert victim.counts.handshakes == {"late": 1}


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET /" + b"x" * 100 + b" HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        b"\xff\xff\xff\xff\x0f",  # a message of 4 GiB
        HEADER + b"\x12/plaintext/2.0.0\n" * 40,
        HEADER + b"\x07/noise\n" + b"\xff\xff" + bytes(65535),
        HEADER + b"\x07/noise\n" + b"\x00\x00",
    ],
)
@with_hosts
async def test_a_handshake_of_nonsense_is_ended_at_once(hosts: Hosts, nonsense: bytes) -> None:
    victim = await hosts.open(HostLimits(negotiation_timeout=60))
    async with await dial(port_of(victim)) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(nonsense)
        await assert_closed(stream)
    await until(lambda: victim.counts.handshakes == {"failed": 1})


@with_hosts
async def test_many_half_open_connections_hold_little_and_keep_nobody_out(hosts: Hosts) -> None:
    victim = await hosts.open(HostLimits(max_pending_handshakes=16, negotiation_timeout=60))
    victim.set_handler(ECHO, echo)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    crowd = [await dial(port_of(victim)) for _ in range(200)]
    await until(lambda: victim.counts.handshakes["displaced"] == 200 - 16)
    assert victim.stats()["transport_handshakes_pending"] == 16
    # Our own ends of them, and of the others those that wait.
    assert descriptors() - before <= 200 + 16
    await assert_still_serves(victim, hosts)
    for stream in crowd:
        await stream.aclose()
