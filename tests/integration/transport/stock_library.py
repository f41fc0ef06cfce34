"""Hosts of py-libp2p, to show its faults on, and what the tests of faults share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.network.config import ConnectionConfig
from libp2p.stream_muxer.yamux.yamux import Yamux
from meshnode.dht.host import Stream
from meshnode.node.transport.libp2p_host import Libp2pHost
from multiaddr import Multiaddr

ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def assert_echoes(host: Libp2pHost, other: Libp2pHost) -> None:
    stream = await host.open_stream(other.peer_id, ECHO)
    await stream.write(b"still here")
    assert await stream.read_some() == b"still here"
    await stream.close()
    assert await stream.read_some() == b""


@asynccontextmanager
async def stock_host(config: ConnectionConfig | None = None) -> AsyncIterator[IHost]:
    host = new_host(connection_config=config)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await host.close()


async def stock_dial(host: IHost, other: IHost) -> None:
    await host.get_network().dial_addr(other.get_addrs()[0], other.get_id())


def stock_port(host: IHost) -> int:
    return int(host.get_addrs()[0].value_for_protocol("tcp"))


def stock_yamux(host: IHost, other: IHost) -> Yamux:
    """Of the one connection between them."""
    (connection,) = host.get_network().get_connections(other.get_id())
    yamux = connection.muxed_conn
    assert isinstance(yamux, Yamux)
    return yamux


async def stock_survives(attack: Callable[[IHost, IHost], Awaitable[None]]) -> bool:
    """Whether a stock host is still running shortly after another one has done something to it."""
    survived = True
    try:
        async with stock_host() as victim, stock_host() as attacker:
            await stock_dial(attacker, victim)
            await attack(attacker, victim)
            await trio.sleep(0.5)
    except* (ValueError, UnicodeDecodeError):
        survived = False
    return survived
