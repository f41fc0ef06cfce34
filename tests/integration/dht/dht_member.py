"""A DHT node in a process of its own that holds chunks nobody else has.

    dht_member.py NUMBER [PEER-ID ADDRESS]      the node to join, if any

Prints its peer id and address when it is up, and `announced` when it has told the mesh.
"""

from __future__ import annotations

import sys

import trio
from blake3 import blake3
from meshnode.dht import MemoryBackend, open_dht
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host

CHUNKS_EACH = 128


def chunks_of(number: int) -> list[tuple[bytes, int]]:
    """What the member with this number holds: digests and sizes."""
    return [(blake3(b"%d of %d" % (i, number)).digest(), 1000 + i) for i in range(CHUNKS_EACH)]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(number: int, join: list[str]) -> None:
    identity = Identity.generate()
    async with (
        open_libp2p_host(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as host,
        open_dht(host, MemoryBackend(), signer=identity) as dht,
    ):
        if join:
            first = PeerId.parse(join[0])
            host.add_addresses(first, [join[1]])
            await dht.bootstrap([first])
        say(f"{host.peer_id} {host.addresses()[0]}")
        await dht.announce(chunks_of(number))
        say("announced")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2:])
