"""Members that lie: what they say is bounded, checked, and held against them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from blake3 import blake3
from meshnode.dht import DhtSettings
from meshnode.dht.framing import FrameReader, encode_frame, encode_length
from meshnode.dht.host import Stream
from meshnode.dht.kad_wire import (
    KadMessage,
    Kind,
    PeerAddresses,
    decode_message,
    encode_message,
)
from meshnode.dht.keyspace import chunk_key, manifest_key
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records_wire import Announce, Find, encode_request
from meshnode.dht.settings import KAD_PROTOCOL, RECORDS_PROTOCOL
from meshnode.errors import PeerError
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
Answer = Callable[[KadMessage], KadMessage | bytes]


def liar(answer: Answer) -> Callable[[Stream], Awaitable[None]]:
    """A server of the kad protocol that says what `answer` makes of a request."""

    async def serve(stream: Stream) -> None:
        reader = FrameReader(stream, 1 << 20)
        while await reader.wait():
            said = answer(decode_message(await reader.read()))
            frame = said if isinstance(said, bytes) else encode_frame(encode_message(said))
            await stream.write(frame)

    return serve


def strangers(count: int, seed: int) -> tuple[PeerAddresses, ...]:
    rng = random.Random(seed)
    return tuple(
        PeerAddresses(PeerId.from_ed25519(rng.randbytes(32)), (f"/ip4/10.9.9.{i + 1}/tcp/9",))
        for i in range(count)
    )


async def add_liar(mesh: Any, answer: Answer) -> PeerId:
    """A host that joins the mesh and then lies."""
    host = mesh.network.add_host()
    host.set_handler(KAD_PROTOCOL, liar(answer))
    for node in mesh.nodes:
        host.add_addresses(node.peer, node.host.addresses())
        await host.connect(node.peer)
    await trio.sleep(3)
    return host.peer_id


async def ask(mesh: Any, protocol: str, payload: bytes, *, of: Any) -> Stream:
    """Send raw bytes to a node from a fresh host; returns the stream to read from."""
    host = mesh.network.add_host()
    host.add_addresses(of.peer, of.host.addresses())
    stream = await host.open_stream(of.peer, protocol)
    await stream.write(payload)
    return stream


async def is_reset(stream: Stream) -> bool:
    try:
        return await stream.read_some() == b""
    except PeerError:
        return True


async def test_a_manifest_that_is_not_what_its_name_says_is_neither_believed_nor_forgiven(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        honest = b"the true manifest" * 10
        digest = blake3(honest).digest()

        def lie(request: KadMessage) -> KadMessage:
            value = b"forged" if request.kind is Kind.GET_VALUE else None
            return KadMessage(request.kind, request.key, value)

        peer = await add_liar(mesh, lie)
        reader = mesh.nodes[2]
        assert peer in {entry.peer for entry in reader.dht.peers()}
        assert await reader.dht.get_manifest(digest) is None
        assert reader.dht.stats()["peers_misbehaved"] == 1
        await mesh.nodes[0].dht.put_manifest(digest, honest)
        assert await reader.dht.get_manifest(digest) == honest


async def test_garbage_answers_evict_the_peer_that_gives_them(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        lying = False

        def garbage(request: KadMessage) -> KadMessage | bytes:
            if lying:
                return encode_frame(b"\xff" * 40)
            return KadMessage(request.kind, request.key)

        peer = await add_liar(mesh, garbage)
        node = mesh.nodes[1]
        assert peer in {entry.peer for entry in node.dht.peers()}
        lying = True
        for _ in range(4):
            result = await node.dht.find_closest(b"any key")
            assert set(result.closest) == {mesh.nodes[0].peer, mesh.nodes[2].peer}
            await trio.sleep(30)
        assert peer not in {entry.peer for entry in node.dht.peers()}


async def test_endless_lists_of_strangers_do_not_keep_a_lookup_going(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4, settings=DhtSettings(k=8)) as mesh:
        calls = 0

        def flood(request: KadMessage) -> KadMessage:
            nonlocal calls
            calls += 1
            return KadMessage(request.kind, request.key, closer=strangers(64, calls))

        peer = await add_liar(mesh, flood)
        node = mesh.nodes[1]
        began = trio.current_time()
        result = await node.dht.find_closest(b"any key")
        assert trio.current_time() - began < 21
        assert result.asked <= 160
        assert set(result.closest) <= {n.peer for n in mesh.nodes} | {peer}
        assert {n.peer for n in mesh.nodes if n is not node} <= set(result.closest)
        table = {entry.peer for entry in node.dht.peers()}
        assert table <= {n.peer for n in mesh.nodes} | {peer}


async def test_only_the_holder_itself_can_say_that_it_holds(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2) as mesh:
        server, digest = mesh.nodes[0], b"h" * 32
        (victim,) = strangers(1, 1)
        forged = KadMessage(Kind.ADD_PROVIDER, chunk_key(digest), providers=(victim,))
        stream = await ask(mesh, KAD_PROTOCOL, encode_frame(encode_message(forged)), of=server)
        honest = KadMessage(
            Kind.ADD_PROVIDER,
            chunk_key(digest),
            providers=(PeerAddresses(claimant_of(mesh), ("/ip4/10.8.8.8/tcp/1",)),),
        )
        await stream.write(encode_frame(encode_message(honest)))
        question = KadMessage(Kind.GET_PROVIDERS, chunk_key(digest))
        await stream.write(encode_frame(encode_message(question)))
        answer = decode_message(await FrameReader(stream, 1 << 20).read())
        assert [entry.peer for entry in answer.providers] == [claimant_of(mesh)]
        assert server.dht.stats()["providers_forged"] == 1
        found = await mesh.nodes[1].dht.find_chunks([digest])
        assert [record.peer for record in found[digest]] == [claimant_of(mesh)]


def claimant_of(mesh: Any) -> PeerId:
    """The host that `ask` made last."""
    return list(mesh.network.hosts)[-1]


async def test_a_forged_manifest_is_not_kept(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1) as mesh:
        server = mesh.nodes[0]
        forged = KadMessage(Kind.PUT_VALUE, manifest_key(b"m" * 32), b"not it")
        stream = await ask(mesh, KAD_PROTOCOL, encode_frame(encode_message(forged)), of=server)
        assert await is_reset(stream)
        assert server.dht.stats()["manifests"] == 0
        assert server.dht.stats()["values_forged"] == 1


async def test_malformed_and_oversized_requests_cost_the_stream_and_nothing_else(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2) as mesh:
        server = mesh.nodes[0]
        for protocol in (KAD_PROTOCOL, RECORDS_PROTOCOL):
            for payload in (
                encode_frame(b"\xff\xfe\n"),
                encode_length(1 << 30) + b"x",
                b"\xff" * 12,
            ):
                assert await is_reset(await ask(mesh, protocol, payload, of=server))
        assert server.dht.stats()["requests_malformed"] == 6
        report = await mesh.nodes[1].dht.announce([(b"k" * 32, 1)])
        assert report.weakest == 1


async def test_a_peer_that_announces_too_much_is_refused_key_by_key_with_the_reason(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1) as mesh:
        small = await mesh.add(settings=DhtSettings(max_records_per_peer=100))
        greedy = await mesh.add()
        rng = random.Random(2)
        keys = [(rng.randbytes(32), 1) for _ in range(300)]
        report = await greedy.dht.announce(keys)
        assert small.dht.stats()["chunk_records"] == 100
        assert report.refused.keys() == {"peer_full"}
        assert 0 < report.refused["peer_full"] < 200  # nearer keys displaced farther ones
        assert report.weakest == 1
        other = mesh.nodes[0]
        assert (await other.dht.announce([(b"o" * 32, 1)])).weakest == 2


async def test_a_request_cut_short_frees_the_stream_in_time(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1) as mesh:
        server = mesh.nodes[0]
        request = encode_request(Announce("", 60, (b"a" * 32,), (1,)))
        stream = await ask(
            mesh, RECORDS_PROTOCOL, encode_length(len(request)) + request[:-3], of=server
        )
        await trio.sleep(30)
        assert await is_reset(stream)
        assert server.dht.stats()["chunk_records"] == 0


async def test_streams_per_peer_are_limited(mesh_of: MeshOpener, autojump_clock: MockClock) -> None:
    async with mesh_of(1, settings=DhtSettings(max_streams_per_peer=3)) as mesh:
        server = mesh.nodes[0]
        host = mesh.network.add_host()
        host.add_addresses(server.peer, server.host.addresses())
        streams = [await host.open_stream(server.peer, RECORDS_PROTOCOL) for _ in range(4)]
        question = encode_frame(encode_request(Find((b"a" * 32,), 1)))
        answered = 0
        for stream in streams:
            try:
                await stream.write(question)
                answered += bool(await stream.read_some())
            except PeerError:
                assert server.dht.stats()["streams_refused"] == 1
        assert answered == 3
