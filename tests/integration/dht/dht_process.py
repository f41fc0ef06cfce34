"""A DHT node in a process of its own, to be stopped: holds some chunks and a manifest.

    dht_process.py [PEER-ID ADDRESS]      the node to join, if any

Prints its peer id and address when it is up, and `announced` when the mesh knows what it holds.
"""

from __future__ import annotations

import sys

import trio
from blake3 import blake3
from meshnode.dht import MemoryBackend, open_dht
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host

CHUNKS = [(blake3(b"chunk %d" % number).digest(), 1000) for number in range(50)]
MANIFEST = b"a manifest " * 100


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(arguments: list[str]) -> None:
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with (
        open_libp2p_host(Identity.generate(), listen=listen) as host,
        open_dht(host, MemoryBackend()) as dht,
    ):
        if arguments:
            first = PeerId.parse(arguments[0])
            host.add_addresses(first, [arguments[1]])
            await dht.bootstrap([first])
        say(f"{host.peer_id} {host.addresses()[0]}")
        if arguments:
            await dht.announce(CHUNKS)
            await dht.put_manifest(blake3(MANIFEST).digest(), MANIFEST)
        say("announced")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
