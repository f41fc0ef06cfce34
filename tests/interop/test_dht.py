"""js-libp2p's Kademlia among our nodes, on `/ipfs/kad/1.0.0`.

Nobody puts a peer into anybody's routing table: js takes one in after identify has named the
protocol and a ping was answered, as it does with every libp2p node, and our hosts serve both.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from blake3 import blake3
from meshnode.dht import Dht, MemoryBackend, open_dht
from meshnode.dht.framing import encode_frame
from meshnode.dht.kad_wire import KadMessage, Kind, encode_message
from meshnode.dht.keyspace import chunk_key
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import KAD_PROTOCOL
from meshnode.errors import PeerError
from meshnode.node.identity import Identity, MemberInfo, Mesh
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.member import open_member_host

from .conftest import LOOPBACK
from .foreign import JS, ForeignPeer, js_command, running

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
            nodes.append(Node(host, dht))
        for node in nodes[1:]:
            await node.join(nodes[0].host.peer_id, nodes[0].host.addresses()[0])
        yield nodes


@asynccontextmanager
async def js_node(mode: str) -> AsyncIterator[ForeignPeer]:
    with running(js_command("--dht", mode), JS) as process:
        async with process.talking() as js:
            yield js


async def learn(js: ForeignPeer, node: Node) -> None:
    """Have js dial a node; nothing else makes it known there."""
    await js.play("dial", peer=node.name, address=node.host.addresses()[0])
    await js.play("wait_known", peer=node.name)


def some_value() -> tuple[bytes, bytes]:
    value = secrets.token_bytes(500)
    return blake3(value).digest(), value


async def is_known_to(js: ForeignPeer, node: Node) -> None:
    """Wait until js is in the routing table of a node that has heard from it."""
    with trio.fail_after(20):
        while js.peer not in [str(entry.peer) for entry in node.dht.peers()]:  # noqa: ASYNC110
            await trio.sleep(0.01)


# A client asks and is not asked; a server takes part.
either_mode = pytest.mark.parametrize("mode", ["client", "server"])


@either_mode
async def test_js_finds_peers_holders_and_manifests_through_our_nodes(mode: str) -> None:
    chunk = secrets.token_bytes(32)
    digest, manifest = some_value()
    async with js_node(mode) as js, our_nodes(3) as (known, _, other):
        await other.dht.announce([(chunk, SIZE)])
        await other.dht.put_manifest(digest, manifest)
        await learn(js, known)
        assert await js.play("find_peer", target=other.name) == other.host.addresses()
        assert other.name in await js.play("find_providers", digest=chunk.hex())
        assert await js.play("get", digest=digest.hex()) == manifest.hex()
        if mode == "server":
            await is_known_to(js, known)
        else:
            assert js.peer not in [str(entry.peer) for entry in known.dht.peers()]


@either_mode
async def test_what_js_provides_and_puts_is_found_by_our_nodes(mode: str) -> None:
    chunk = secrets.token_bytes(32)
    digest, manifest = some_value()
    async with js_node(mode) as js, our_nodes(3) as (known, _, other):
        await learn(js, known)
        await js.play("put", digest=digest.hex(), value=manifest.hex())
        assert await other.dht.get_manifest(digest) == manifest
        await js.play("provide", digest=chunk.hex())
        with trio.fail_after(20):
            # ADD_PROVIDER is not answered: asking is the only way to know that it has arrived.
            while not (records := (await other.dht.find_chunks([chunk]))[chunk]):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [str(record.peer) for record in records] == [js.peer]
        assert js.address in other.host.known_addresses(PeerId.parse(js.peer))


@asynccontextmanager
async def node_of_an_open_mesh() -> AsyncIterator[Node]:
    """As a running node is put together, behind its gate."""
    mesh, info = Mesh.create("open", open=True), MemberInfo("node", "attic", "meshnode/test")
    async with (
        open_libp2p_host(Identity.generate(), listen=LOOPBACK) as inner,
        open_member_host(inner, mesh, info, public=[KAD_PROTOCOL]) as host,
        open_dht(host, MemoryBackend()) as dht,
    ):
        yield Node(inner, dht)


@either_mode
async def test_js_is_served_by_a_node_of_an_open_mesh_without_any_proof(mode: str) -> None:
    chunk = secrets.token_bytes(32)
    async with js_node(mode) as js, node_of_an_open_mesh() as node:
        await node.dht.announce([(chunk, SIZE)])
        await learn(js, node)
        assert node.name in await js.play("find_providers", digest=chunk.hex())


async def test_a_value_that_is_not_its_digest_is_kept_by_none_of_our_nodes() -> None:
    digest, manifest = some_value()
    async with js_node("client") as js, our_nodes(2) as nodes:
        await learn(js, nodes[0])
        await js.play("put", digest=digest.hex(), value=(manifest + b"forged").hex())
        for node in nodes:
            assert await node.dht.get_manifest(digest) is None


async def test_js_and_our_nodes_learn_of_each_other_whoever_dials() -> None:
    async with js_node("server") as js, our_nodes(1) as (dialled,), our_nodes(1) as (dialling,):
        await learn(js, dialled)
        await is_known_to(js, dialled)
        assert js.address in dialled.host.known_addresses(PeerId.parse(js.peer))
        await dialling.join(PeerId.parse(js.peer), js.address)
        await js.play("wait_known", peer=dialling.name)
        assert dialling.host.addresses()[0] in await js.play("addresses_of", peer=dialling.name)


async def test_we_find_peers_and_holders_though_js_is_all_we_know() -> None:
    chunk = secrets.token_bytes(32)
    async with js_node("server") as js, our_nodes(2) as (known, other), our_nodes(1) as (asker,):
        await other.dht.announce([(chunk, SIZE)])
        await learn(js, known)
        await asker.join(PeerId.parse(js.peer), js.address)
        assert await asker.dht.find_peer(known.host.peer_id) == known.host.addresses()
        records = (await asker.dht.find_chunks([chunk]))[chunk]
        assert [str(record.peer) for record in records] == [other.name]


async def test_a_js_node_keeps_a_manifest_for_us() -> None:
    digest, manifest = some_value()
    async with js_node("server") as js, our_nodes(1) as (asker,):
        async with our_nodes(1) as (publisher,):
            await publisher.join(PeerId.parse(js.peer), js.address)
            report = await publisher.dht.put_manifest(digest, manifest)
            assert js.peer in [str(peer) for peer in report.stored_on]
        await asker.join(PeerId.parse(js.peer), js.address)
        assert await asker.dht.get_manifest(digest) == manifest


async def test_js_keeps_no_provider_records_of_ours_as_it_takes_their_key_for_a_cid() -> None:
    """The fault of @libp2p/kad-dht 16: it knows multihashes of SHA-256 and no others.

    When this fails, js nodes can keep our provider records.
    """
    async with js_node("server") as js, our_nodes(1) as (node,):
        await learn(js, node)

        async def ask(key: bytes) -> bytes:
            stream = await node.host.open_stream(PeerId.parse(js.peer), KAD_PROTOCOL)
            await stream.write(encode_frame(encode_message(KadMessage(Kind.GET_PROVIDERS, key))))
            return await stream.read_some()

        assert await ask(b"\x12\x20" + bytes(32))
        with pytest.raises(PeerError, match="reset by the peer"):
            await ask(chunk_key(bytes(32)))
