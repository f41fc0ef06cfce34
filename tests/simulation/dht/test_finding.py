"""Whom a search for chunk records asks: few peers when they agree, all when they do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht import DhtSettings
from meshnode.dht.keyspace import chunk_position
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records_wire import Found, Holder, HolderPeer
from meshnode.node.transport.sim import SimLink
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

SETTINGS = DhtSettings(k=8)


def digests(count: int, seed: int = 5) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(32) for _ in range(count)]


async def announced(node: Any, wanted: Sequence[bytes]) -> None:
    await node.dht.announce([(digest, 7) for digest in wanted])


def forget(node: Any, wanted: Sequence[bytes], *, of: Any) -> None:
    node.dht._chunks.withdraw(of.peer, wanted)


async def asked_by(reader: Any, wanted: Sequence[bytes]) -> tuple[dict[bytes, set[PeerId]], int]:
    """Holders found, and how many requests that took."""
    answer = await reader.dht.search_chunks(wanted)
    holders = {digest: {r.peer for r in found} for digest, found in answer.holders.items()}
    return holders, answer.query.asked


async def test_two_peers_that_know_the_same_holder_are_enough(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        writer, reader, wanted = mesh.nodes[1], mesh.nodes[2], digests(50)
        await announced(writer, wanted)
        holders, asked = await asked_by(reader, wanted)
        assert set(map(frozenset, holders.values())) == {frozenset([writer.peer])}
        assert asked == 3
        forget(reader, wanted, of=writer)
        holders, asked = await asked_by(reader, wanted)
        assert set(map(frozenset, holders.values())) == {frozenset([writer.peer])}
        assert asked == 3


async def test_peers_that_differ_make_all_others_be_asked(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        first, second, reader, wanted = *mesh.nodes[1:3], mesh.nodes[3], digests(40)
        await announced(first, wanted)
        await announced(second, wanted)
        forget(reader, wanted, of=first)
        forget(reader, wanted, of=second)
        others = [node for node in mesh.nodes if node not in (first, second, reader)]
        # Any two of them know different holders of the first twenty.
        for node, of in zip(others, [first, second] * 3, strict=False):
            forget(node, wanted[:20], of=of)
        holders, asked = await asked_by(reader, wanted)
        assert asked > 3
        assert set(map(frozenset, holders.values())) == {frozenset([first.peer, second.peer])}


async def test_what_nobody_of_the_first_asked_knows_is_asked_of_all(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        writer, reader, wanted = mesh.nodes[1], mesh.nodes[2], digests(10)
        await announced(writer, wanted)
        for node in mesh.nodes[2:]:
            forget(node, wanted, of=writer)
        holders, asked = await asked_by(reader, wanted)
        assert asked == 7
        assert all(found == {writer.peer} for found in holders.values())


async def test_what_we_hold_alone_costs_no_more_questions(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        writer, wanted = mesh.nodes[1], digests(10)
        await announced(writer, wanted)
        holders, asked = await asked_by(writer, wanted)
        assert asked == 3
        assert all(found == {writer.peer} for found in holders.values())


async def test_when_all_who_keep_a_record_freeze_its_holder_itself_is_found(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    settings = DhtSettings(k=4, map_members=40)
    async with mesh_of(12, settings=settings, full_map=True) as mesh:
        await trio.sleep(120)
        digest = digests(1)[0]
        at = chunk_position(digest)
        (keepers,) = mesh.nodes[0].dht._locator.known([at]).values()
        writer, reader = [node for node in mesh.nodes if node.peer not in keepers][:2]
        await announced(writer, [digest])
        for node in mesh.nodes:
            if node.peer in keepers:
                mesh.network.freeze(node.peer)
        began = trio.current_time()
        holders, _ = await asked_by(reader, [digest])
        assert holders == {digest: {writer.peer}}
        assert reader.dht.stats()["keys_sought_beyond"] == 1
        assert trio.current_time() - began < 4


def invent(liar: Any, count: int) -> set[PeerId]:
    """Have `liar` say of every chunk that it is held by so many peers, who do not exist."""
    invented = [PeerId.from_ed25519(bytes([count, number]) * 16) for number in range(count)]
    peers = tuple(HolderPeer(peer, "", ("/ip4/192.0.2.9/tcp/9",)) for peer in invented)
    row = tuple(Holder(number, 7, 100_000) for number in range(count))
    liar.dht._server._records._find = lambda digests, limit: Found(peers, (row,) * len(digests))
    return set(invented)


def as_asked(mesh: Any, reader: Any) -> list[Any]:
    """All others, in the order in which `reader` asks them."""
    nodes = {node.peer: node for node in mesh.nodes}
    return [nodes[peer] for peer in reader.dht._finder._fastest_first(nodes)]


def answer_first(mesh: Any, reader: Any, hasty: Sequence[Any], others: float = 0.1) -> None:
    for other in mesh.nodes:
        if other is not reader and other not in hasty:
            mesh.network.set_link(reader.peer, other.peer, SimLink(latency=others))


async def test_a_liar_that_invents_holders_settles_nothing_and_they_are_named_last(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        reader, wanted = mesh.nodes[2], digests(10)
        liar, *_, writer = as_asked(mesh, reader)
        await announced(writer, wanted)
        forget(reader, wanted, of=writer)
        answer_first(mesh, reader, [liar])
        invented = invent(liar, 20)
        found = await reader.dht.find_chunks(wanted)
        for holders in found.values():
            assert holders[0].peer == writer.peer
            assert {record.peer for record in holders[1:]} == invented


async def test_a_liar_that_answers_long_before_all_others_is_not_all_that_is_heard(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        reader, wanted = mesh.nodes[2], digests(10)
        liar, *_, writer = as_asked(mesh, reader)
        await announced(writer, wanted)
        forget(reader, wanted, of=writer)
        monkeypatch.setattr(reader.dht._contacts.health, "deadline", lambda _: 2.0)
        answer_first(mesh, reader, [liar], others=0.3)
        invent(liar, 3)
        found = await reader.dht.find_chunks(wanted)
        assert all(holders[0].peer == writer.peer for holders in found.values())


async def test_liars_of_one_public_network_are_one_voice(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        reader, wanted = mesh.nodes[2], digests(10)
        *liars, _, _, _, _, writer = as_asked(mesh, reader)
        assert len(liars) == 2
        await announced(writer, wanted)
        forget(reader, wanted, of=writer)
        answer_first(mesh, reader, liars)
        for liar in liars:
            invent(liar, 3)
        networks = dict.fromkeys((liar.peer for liar in liars), "198.51.100.0/24")
        monkeypatch.setattr(reader.dht._contacts, "group", networks.get)
        found = await reader.dht.find_chunks(wanted)
        assert all(writer.peer in {r.peer for r in holders} for holders in found.values())


async def test_where_all_are_of_one_public_network_two_peers_are_enough(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        writer, reader, wanted = mesh.nodes[1], mesh.nodes[2], digests(10)
        await announced(writer, wanted)
        forget(reader, wanted, of=writer)
        monkeypatch.setattr(reader.dht._contacts, "group", lambda _: "198.51.100.0/24")
        holders, asked = await asked_by(reader, wanted)
        assert all(found == {writer.peer} for found in holders.values())
        assert asked == 3


async def test_three_holders_that_two_peers_name_are_enough_though_no_two_agree(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8, settings=SETTINGS) as mesh:
        reader, wanted = mesh.nodes[2], digests(10)
        *first_wave, a, b, c, d = as_asked(mesh, reader)
        for writer in (a, b, c, d):
            await announced(writer, wanted)
            forget(reader, wanted, of=writer)
        for node, of in zip(first_wave, (a, b, c), strict=True):
            forget(node, wanted, of=of)
        holders, asked = await asked_by(reader, wanted)
        assert all(found == {a.peer, b.peer, c.peer, d.peer} for found in holders.values())
        assert asked == 3
