"""What `make bench-dht` compares: our DHT and the stock `KadDHT` of py-libp2p, behind one face.

Run as a process of its own it is a member of a mesh:
`python -m tests.bench.dht_kinds KIND [ADDRESS]` prints its address, then serves until its input
ends. `python -m tests.bench.dht_kinds KIND --records N` prints what N records cost in memory.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import structlog
import trio
from libp2p import create_yamux_muxer_option, new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.tools.anyio_service import background_trio_service
from meshnode.dht import Dht, DhtSettings, MemoryBackend, open_dht
from meshnode.dht.backend import Row, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records import ChunkRecords
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host
from multiaddr import Multiaddr

LISTEN = "/ip4/127.0.0.1/tcp/0"
PUBLISHERS = 10


class Client(Protocol):
    """A member of a mesh that can be told to do something."""

    address: str

    async def provide(self, digest: bytes) -> None:
        """Tell the mesh that we hold this."""
        ...

    async def find(self, digest: bytes) -> bool:
        """Whether somebody is found who holds it."""
        ...


class OurClient:
    def __init__(self, dht: Dht, address: str) -> None:
        self.dht = dht
        self.address = address

    async def provide(self, digest: bytes) -> None:
        await self.dht.announce([(digest, 1 << 20)])

    async def find(self, digest: bytes) -> bool:
        return bool((await self.dht.find_chunks([digest]))[digest])


class StockClient:
    def __init__(self, dht: KadDHT, address: str) -> None:
        self.dht = dht
        self.address = address

    async def provide(self, digest: bytes) -> None:
        await self.dht.provide((b"\x12\x20" + digest).hex())

    async def find(self, digest: bytes) -> bool:
        key = b"\x12\x20" + digest
        # In a small mesh every member keeps every record, and this one would ask nobody.
        self.dht.provider_store.providers.pop(key, None)
        # One provider is enough: with the default count it looks for twenty.
        return bool(await self.dht.find_providers(key.hex(), count=1))


@asynccontextmanager
async def open_ours(join: str | None) -> AsyncIterator[Client]:
    identity = Identity.generate()
    async with (
        open_libp2p_host(identity, listen=[LISTEN]) as host,
        open_dht(host, MemoryBackend(), signer=identity) as dht,
    ):
        if join is not None:
            where, _, peer = join.rpartition("/p2p/")
            host.add_addresses(PeerId.parse(peer), [where])
            await dht.bootstrap([PeerId.parse(peer)])
        yield OurClient(dht, f"{host.addresses()[0]}/p2p/{host.peer_id}")


@asynccontextmanager
async def open_stock(join: str | None) -> AsyncIterator[Client]:
    host = new_host(key_pair=create_new_key_pair(), muxer_opt=create_yamux_muxer_option())
    async with host.run(listen_addrs=[Multiaddr(LISTEN)]):
        dht = KadDHT(host, DHTMode.SERVER)
        if join is not None:
            info = info_from_p2p_addr(Multiaddr(join))
            await host.connect(info)
            await dht.routing_table.add_peer(info)
        async with background_trio_service(dht):
            address = str(host.get_addrs()[0])
            if "/p2p/" not in address:
                address += f"/p2p/{host.get_id()}"
            yield StockClient(dht, address)


KINDS = {"meshnode": open_ours, "py-libp2p": open_stock}


def open_client(kind: str, join: str | None) -> AbstractAsyncContextManager[Client]:
    return KINDS[kind](join)


# --- memory ---------------------------------------------------------------------------------------


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Disk(MemoryBackend):
    """Takes no memory for what it is given."""

    async def save(self, rows: list[Row], /) -> None:
        await trio.lowlevel.checkpoint()


def _fill_ours(count: int) -> object:
    rng = random.Random(1)
    peers = [PeerId.from_ed25519(rng.randbytes(32)) for _ in range(PUBLISHERS)]
    counters = Counters()
    # What has been written to disk is no longer pending: the writer is emptied as a node's is.
    rows = RowWriter(_Disk(), counters)
    records = ChunkRecords(peers[0], DhtSettings(), rows, counters)
    for number in range(count):
        records.put(peers[number % PUBLISHERS], "zone", rng.randbytes(32), 1 << 20, 2e9)
        if number % 1000 == 0:
            trio.run(rows.flush)
    trio.run(rows.flush)
    return records


def _fill_stock(count: int) -> object:
    rng = random.Random(1)
    peers = [PeerId.from_ed25519(rng.randbytes(32)) for _ in range(PUBLISHERS)]
    infos = [PeerInfo(ID(bytes(peer)), [Multiaddr("/ip4/10.0.0.1/tcp/1")]) for peer in peers]
    store = ProviderStore(new_host(key_pair=create_new_key_pair()))
    for number in range(count):
        store.add_provider(b"\x12\x20" + rng.randbytes(32), infos[number % PUBLISHERS])
    return store


def print_memory(kind: str, count: int) -> None:
    """Bytes of resident memory that `count` records of ten publishers take."""
    fill = {"meshnode": _fill_ours, "py-libp2p": _fill_stock}[kind]
    fill(100)
    gc.collect()
    before = _resident()
    kept = fill(count)
    gc.collect()
    print(_resident() - before, flush=True)
    del kept


async def _serve(kind: str, join: str | None) -> None:
    async with open_client(kind, join) as client:
        print(client.address, flush=True)
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            while await stdin.receive_some():
                pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("join", nargs="?")
    parser.add_argument("--records", type=int)
    options = parser.parse_args()
    quiet()
    if options.records:
        print_memory(options.kind, options.records)
    else:
        trio.run(_serve, options.kind, options.join)


def quiet() -> None:
    """Neither's log is part of the measurement."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    sys.exit(main())
