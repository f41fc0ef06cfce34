"""A host in a process of its own, to be stopped or killed. Prints its peer id and address."""

from __future__ import annotations

import sys

import trio
from meshnode.dht.host import Stream
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def main() -> None:
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with open_libp2p_host(Identity.generate(), listen=listen) as host:
        host.set_handler("/test/echo/1", echo)
        sys.stdout.write(f"{host.peer_id} {host.addresses()[0]}\n")
        sys.stdout.flush()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
