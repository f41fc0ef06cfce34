"""js-libp2p's Kademlia asks our nodes, and ours ask through it, on `/ipfs/kad/1.0.0`.

It takes a peer into its routing table only after identify has named the protocol and a ping was
answered. A node serves neither; here the test does, beside the DHT.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from meshnode.dht import Dht, MemoryBackend, open_dht
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import KAD_PROTOCOL
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host

from .conftest import LOOPBACK
from .foreign import JS, ForeignPeer, js_command, running
from .services import IDENTIFY, PING, answer_identify, answer_pings

SIZE = 1000

pytestmark = pytest.mark.usefixtures("js_installed")


@dataclass(frozen=True, slots=True)
class Node:
    host: Libp2pHost
    dht: Dht

    @property
    def name(self) -> str:
        return str(self.host.peer_id)

    async def join(self, peer: PeerId, address: str) -> None:
        self.host.add_addresses(peer, [address])
        await self.dht.bootstrap([peer])


@asynccontextmanager
async def our_nodes(count: int) -> AsyncIterator[list[Node]]:
    """Bare nodes; all but the first have joined by way of the first."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for _ in range(count):
            host = await stack.enter_async_context(
                open_libp2p_host(Identity.generate(), listen=LOOPBACK)
            )
            dht = await stack.enter_async_context(open_dht(host, MemoryBackend()))
            host.set_handler(PING, answer_pings)
            host.set_handler(IDENTIFY, partial(answer_identify, host, [KAD_PROTOCOL, PING]))
            nodes.append(Node(host, dht))
        for node in nodes[1:]:
            await node.join(nodes[0].host.peer_id, nodes[0].host.addresses()[0])
        yield nodes


@asynccontextmanager
async def js_node() -> AsyncIterator[ForeignPeer]:
    with running(js_command("--dht"), JS) as process:
        async with process.talking() as js:
            yield js


async def learn(js: ForeignPeer, node: Node) -> None:
    await js.play("learn", peer=node.name, address=node.host.addresses()[0])


async def test_js_finds_a_peer_through_our_nodes() -> None:
    async with js_node() as js, our_nodes(3) as (known, _, sought):
        await learn(js, known)
        assert await js.play("find_peer", target=sought.name) == sought.host.addresses()


async def test_we_find_a_peer_through_a_js_node() -> None:
    async with js_node() as js, our_nodes(1) as (sought,), our_nodes(1) as (asker,):
        await learn(js, sought)
        await asker.join(PeerId.parse(js.peer), js.address)
        assert await asker.dht.find_peer(sought.host.peer_id) == sought.host.addresses()


async def test_js_finds_our_chunks_as_provider_records() -> None:
    digest = secrets.token_bytes(32)
    async with js_node() as js, our_nodes(3) as (known, _, holder):
        await holder.dht.announce([(digest, SIZE)])
        await learn(js, known)
        assert holder.name in await js.play("find_providers", digest=digest.hex())


async def test_what_js_provides_is_found_by_our_nodes() -> None:
    digest = secrets.token_bytes(32)
    async with js_node() as js, our_nodes(3) as nodes:
        await learn(js, nodes[0])
        await js.play("provide", digest=digest.hex())
        with trio.fail_after(5):
            # ADD_PROVIDER is not answered: asking is the only way to know that it has arrived.
            while not (records := (await nodes[2].dht.find_chunks([digest]))[digest]):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [str(record.peer) for record in records] == [js.peer]
