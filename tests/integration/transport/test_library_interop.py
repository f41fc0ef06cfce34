"""On the wire we are an ordinary libp2p node: the library's own host talks to ours, both ways."""

from __future__ import annotations

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from multiaddr import Multiaddr

from .conftest import Hosts, with_hosts

ECHO = "/test/echo/1"
SENT = bytes(range(256)) * 2000


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


@with_hosts
async def test_the_library_dials_us(hosts: Hosts) -> None:
    ours = await hosts.open()
    ours.set_handler(ECHO, echo)
    theirs = new_host()
    async with theirs.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        name = ID(bytes(ours.peer_id))
        await theirs.get_network().dial_addr(Multiaddr(ours.addresses()[0]), name)
        stream = await theirs.new_stream(name, [ECHO])  # type: ignore[list-item]
        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, SENT)
            while len(got) < len(SENT):
                got += await stream.read(65536)
        assert got == SENT
        await theirs.close()


@with_hosts
async def test_we_dial_the_library(hosts: Hosts) -> None:
    ours = await hosts.open()
    theirs = new_host()

    async def library_echo(stream: INetStream) -> None:
        left = len(SENT)
        while left:
            data = await stream.read(65536)
            left -= len(data)
            await stream.write(data)
        await stream.close()

    async with theirs.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        theirs.set_stream_handler(ECHO, library_echo)  # type: ignore[arg-type]
        name = PeerId.from_bytes(theirs.get_id().to_bytes())
        ours.add_addresses(name, [str(theirs.get_addrs()[0])])
        stream = await ours.open_stream(name, ECHO)
        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, SENT)
            while data := await stream.read_some():
                got += data
        assert got == SENT
        await theirs.close()
