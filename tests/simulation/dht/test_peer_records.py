"""Signed peer records in the DHT of a mesh without a full map: published, found, never forged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht import DhtSettings
from meshnode.dht.framing import FrameReader, encode_frame
from meshnode.dht.handover_wire import MovedValue
from meshnode.dht.kad_wire import (
    KadMessage,
    Kind,
    PeerAddresses,
    decode_message,
    encode_message,
)
from meshnode.dht.peer_id import PeerId
from meshnode.dht.peer_record import PeerRecord, decode_record, peer_record_key, sign_record
from meshnode.dht.settings import KAD_PROTOCOL
from meshnode.errors import PeerError
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
EPOCH = 1_800_000_000
ITERATIVE = DhtSettings(k=5, map_members=0)
SOON = 60.0
LIE = "/ip4/192.0.2.66/tcp/6666"


def kept_of(node: Any, peer: PeerId) -> PeerRecord | None:
    """The record of `peer` that a node keeps for others."""
    kept = node.dht._values._kept.get(peer_record_key(peer))
    return None if kept is None else decode_record(kept.value)


def keepers(mesh: Any, peer: PeerId) -> list[tuple[str, ...]]:
    """What the others that keep the record of `peer` keep."""
    records = [kept_of(node, peer) for node in mesh.nodes if node.peer != peer]
    return [record.addresses for record in records if record is not None]


def say_only(node: Any, peer: PeerId, addresses: list[str]) -> None:
    """Have `node` tell others nothing about `peer` but `addresses`."""
    describe = node.dht._contacts.describe

    def stale(peers: Iterable[PeerId]) -> tuple[PeerAddresses, ...]:
        told = describe(peers)
        return tuple(PeerAddresses(p.peer, tuple(addresses)) if p.peer == peer else p for p in told)

    node.dht._contacts.describe = stale


async def test_a_node_that_moved_is_found_by_its_record_where_all_addresses_told_are_stale(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(14, settings=ITERATIVE, full_map=True) as mesh:
        moved = mesh.nodes[6]
        await trio.sleep(SOON)
        stale = moved.host.addresses()
        assert len(keepers(mesh, moved.peer)) >= ITERATIVE.enough_holders
        await mesh.stop(moved)
        again = await mesh.add(peer=moved.peer)
        here = again.host.addresses()
        assert here != stale
        await trio.sleep(SOON)
        for node in mesh.nodes:
            say_only(node, moved.peer, stale)
        reader = await mesh.add()
        assert moved.peer not in reader.host.connected_peers()
        result = await reader.dht.find_closest(bytes(moved.peer))
        assert moved.peer not in result.closest
        assert reader.host.known_addresses(moved.peer) == stale
        found = await reader.dht.find_peer(moved.peer)
        assert found == [*here, *stale]
        await reader.host.connect(moved.peer)
        assert await reader.dht.find_peer(moved.peer) == reader.host.known_addresses(moved.peer)
        assert await reader.dht.find_peer(PeerId.from_ed25519(b"n" * 32)) == []


def lies_about(mesh: Any, victim: Any, eve: Any) -> dict[str, PeerRecord]:
    """All of them newer than the truth, but for the last two."""

    def record(signer: Any, age: float, realm: bytes = b"") -> PeerRecord:
        seq = int((EPOCH + trio.current_time() - age) * 1000)
        return sign_record(mesh.signer(signer.peer), seq, 3600, [LIE], "", realm=realm)

    return {
        "foreign": record(eve, age=-60),
        "of another mesh": record(victim, age=-60, realm=b"elsewhere"),
        "expired": record(victim, age=7300),
        "old": record(victim, age=600),
    }


async def test_lies_about_a_peer_are_not_stored(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=ITERATIVE, full_map=True) as mesh:
        victim, eve, server = mesh.nodes[1:4]
        await trio.sleep(SOON)
        client, key = eve.dht._client, peer_record_key(victim.peer)
        reasons = {}
        for name, lie in lies_about(mesh, victim, eve).items():
            with pytest.raises(PeerError) as failure:
                await client.put_value(server.peer, key, lie.encoded)
            reasons[name] = getattr(failure.value, "reason", "stream reset")
            moved = [MovedValue(key, 99, lie.encoded)]
            if reasons[name] == "stream reset":
                with pytest.raises(PeerError):
                    await client.move_values(server.peer, moved)
            else:
                assert await client.move_values(server.peer, moved) == 0
            await trio.sleep(20)  # whoever had a stream reset waits before it asks again
        assert list(reasons.values()) == ["stream reset", "stream reset", "full", "outdated"]
        assert server.dht.stats()["values_forged"] >= 4
        record = kept_of(server, victim.peer)
        assert record is not None
        assert record.addresses == tuple(victim.host.addresses())


async def answer_with(mesh: Any, liar: Any, lie: PeerRecord) -> None:
    """Have a node answer everything with `lie`, and everybody ask it over new streams."""

    async def serve(stream: Any) -> None:
        frames = FrameReader(stream, 1 << 17)
        while await frames.wait():
            request = decode_message(await frames.read())
            value = lie.encoded if request.kind is Kind.GET_VALUE else None
            answer = KadMessage(request.kind, request.key, value)
            await stream.write(encode_frame(encode_message(answer)))

    liar.host.set_handler(KAD_PROTOCOL, serve)
    for node in mesh.nodes:
        await node.dht._rpc.dropped(liar.peer)


@pytest.mark.parametrize("name", ["foreign", "of another mesh", "expired", "old"])
async def test_lies_about_a_peer_are_not_returned(
    mesh_of: MeshOpener, autojump_clock: MockClock, name: str
) -> None:
    async with mesh_of(6, settings=ITERATIVE, full_map=True) as mesh:
        victim, eve, other, reader = mesh.nodes[1:5]
        await trio.sleep(SOON)
        lie = lies_about(mesh, victim, eve)[name]
        for liar in (eve, other):
            await answer_with(mesh, liar, lie)
        answer = await reader.dht._reader.peer_record(victim.peer)
        told = {entry.peer for entry in answer.query.peers}
        assert {eve.peer, other.peer} <= told
        assert answer.record is not None
        assert answer.record.addresses == tuple(victim.host.addresses())


async def test_with_a_full_map_nothing_is_published_and_peers_are_found_without_a_request(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, full_map=True) as mesh:
        await trio.sleep(600)
        for node in mesh.nodes:
            stats = node.dht.stats()
            assert stats["full_map"] == 1
            assert "own_record_published" not in stats
            assert stats["peer_records"] == 0
            assert not node.dht._values.own_keys()
        one, other = mesh.nodes[2:4]
        await one.host.disconnect(other.peer)
        one.host.add_addresses(other.peer, [LIE])
        asked = one.dht.stats()["lookups"]
        assert await one.dht.find_peer(other.peer) == [*other.host.addresses(), LIE]
        assert one.dht.stats()["lookups"] == asked


async def test_records_are_published_once_the_mesh_is_too_large_for_a_map(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    settings = DhtSettings(map_members=8)
    async with mesh_of(8, settings=settings, full_map=True) as mesh:
        await trio.sleep(600)
        assert keepers(mesh, mesh.nodes[3].peer) == []
        await mesh.grow(11)
        await trio.sleep(600)
        for node in mesh.nodes:
            assert node.dht.stats()["own_record_published"] == 1
            assert len(keepers(mesh, node.peer)) == 10


async def test_who_listens_elsewhere_says_so_and_the_newest_word_counts(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(6, settings=ITERATIVE, full_map=True) as mesh:
        node = mesh.nodes[3]
        await trio.sleep(SOON)
        assert set(keepers(mesh, node.peer)) == {tuple(node.host.addresses())}
        monkeypatch.setattr(node.host, "addresses", lambda: [LIE])
        await trio.sleep(SOON)
        assert set(keepers(mesh, node.peer)) == {(LIE,)}
        assert node.dht.stats()["own_record_published"] == 2
        monkeypatch.setattr(node.host, "addresses", list)
        await trio.sleep(SOON)
        assert not node.dht._values.own_keys()


async def test_a_node_that_comes_back_elsewhere_says_so_within_seconds_without_a_map(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=ITERATIVE, full_map=True) as mesh:
        nodes = mesh.nodes[1:]
        await trio.sleep(SOON)
        for node in nodes:
            await mesh.stop(node)
            again = await mesh.add(peer=node.peer, backend=node.backend, bootstrap=False)
            assert again.host.addresses() != node.host.addresses()
            await trio.sleep(5)
            assert set(keepers(mesh, node.peer)) == {tuple(again.host.addresses())}


async def test_a_node_that_comes_back_elsewhere_is_soon_on_all_maps(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, full_map=True) as mesh:
        await trio.sleep(600)
        for node, end in ((mesh.nodes[0], mesh.stop), (mesh.nodes[3], mesh.kill)):
            ended = end(node)
            if ended is not None:
                await ended
            again = await mesh.add(peer=node.peer, backend=node.backend, bootstrap=False)
            assert again.host.addresses() != node.host.addresses()
            here = tuple(again.host.addresses())
            maps = [other.dht._gossip.map for other in mesh.nodes if other is not again]
            # News may miss one of them by chance; then it waits for a round or two.
            with trio.fail_after(300):
                while {known.record(node.peer).addresses for known in maps} != {here}:  # noqa: ASYNC110
                    await trio.sleep(1)


async def test_a_goodbye_on_the_map_does_not_hide_who_is_back(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(8, full_map=True) as mesh:
        await trio.sleep(120)
        left, reader = mesh.nodes[3], mesh.nodes[5]
        await mesh.stop(left)
        await trio.sleep(60)
        assert await reader.dht.find_peer(left.peer) == []
        monkeypatch.setattr(reader.dht._gossip, "hear", lambda *_: None)
        again = await mesh.add(peer=left.peer)
        await trio.sleep(5)
        await reader.host.disconnect(left.peer)
        assert reader.dht._gossip.map.record(left.peer).leaving
        assert again.host.addresses()[0] in await reader.dht.find_peer(left.peer)
        assert left.peer in reader.host.connected_peers()


async def test_records_are_repeated_signed_anew_and_end_when_their_node_is_gone(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    settings = DhtSettings(k=5, map_members=0, republish=600, record_ttl=1200, sweep=60)
    async with mesh_of(6, settings=settings, full_map=True) as mesh:
        stays, leaves, keeper = mesh.nodes[1:4]
        await trio.sleep(SOON)
        first = kept_of(keeper, stays.peer)
        assert first is not None
        await mesh.stop(leaves)
        await trio.sleep(1800)
        later = kept_of(keeper, stays.peer)
        assert later is not None
        assert later.seq >= first.seq + 1000 * 1000
        assert stays.dht.stats()["own_record_published"] == 1
        assert keepers(mesh, leaves.peer) == []
        assert (await keeper.dht._reader.peer_record(leaves.peer)).record is None


async def test_a_node_whose_clock_was_set_back_and_that_forgot_all_is_believed_again(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=ITERATIVE, full_map=True) as mesh:
        node = mesh.nodes[3]
        await mesh.stop(node)
        ahead = int((EPOCH + 10 * 24 * 3600) * 1000)
        wrong = sign_record(mesh.signer(node.peer), ahead, 24 * 3600, [LIE], "")
        for other in mesh.nodes[1:]:
            await mesh.nodes[0].dht._client.put_value(other.peer, wrong.key, wrong.encoded)
        again = await mesh.add(peer=node.peer)
        await trio.sleep(5 * SOON)
        answer = await mesh.nodes[1].dht._reader.peer_record(node.peer)
        assert answer.record is not None
        assert answer.record.addresses == tuple(again.host.addresses())


async def test_after_a_restart_what_was_said_before_is_not_repeated(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=ITERATIVE, full_map=True) as mesh:
        node = mesh.nodes[3]
        await trio.sleep(SOON)
        said = node.dht._values.own_value(peer_record_key(node.peer))
        await mesh.stop(node)
        again = await mesh.add(peer=node.peer, backend=node.backend)
        assert again.dht._values.own_keys() == []
        await trio.sleep(SOON)
        says = again.dht._values.own_value(peer_record_key(node.peer))
        assert decode_record(says).seq > decode_record(said).seq
        assert set(keepers(mesh, node.peer)) == {tuple(again.host.addresses())}
