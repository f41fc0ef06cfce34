"""Members that lie about who is in the mesh: forged records, floods of names, endless questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from meshnode.dht import DhtSettings
from meshnode.dht.framing import FrameReader, encode_frame
from meshnode.dht.gossip_wire import (
    MAX_RECORDS,
    PEERS_PROTOCOL,
    Compare,
    Listing,
    News,
    Noted,
    Request,
    Told,
    decode_answer,
    encode_request,
)
from meshnode.dht.peer_record import sign_record
from meshnode.dht.records_wire import Refused
from meshnode.errors import PeerError
from meshnode.node.identity import Identity
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

SETTINGS = DhtSettings(k=8, map_members=40, map_round=10.0, map_refresh=300.0)


def invented(count: int, seed: int) -> list[Told]:
    """True records of members that do not exist."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        record = sign_record(
            Identity.from_seed(rng.randbytes(32)), 7, 900, [f"/ip4/10.9.0.{i % 250}/tcp/9"], ""
        )
        out.append(Told(record.encoded, 900))
    return out


class Liar:
    """A host that sends what it likes on the peers protocol."""

    def __init__(self, mesh: Any, victim: Any) -> None:
        self.host = mesh.network.add_host()
        self.host.add_addresses(victim.peer, victim.host.addresses())
        self._victim = victim.peer

    async def say(self, *requests: Request) -> list[Any]:
        stream = await self.host.open_stream(self._victim, PEERS_PROTOCOL)
        reader, answers = FrameReader(stream, 1 << 20), []
        for request in requests:
            await stream.write(encode_frame(encode_request(request)))
            expected = Listing if isinstance(request, Compare) else Noted
            answers.append(decode_answer(await reader.read(), expected))
        return answers


def batches(told: Sequence[Told]) -> list[News]:
    size = MAX_RECORDS
    return [News(tuple(told[i : i + size]), ()) for i in range(0, len(told), size)]


async def test_a_thousand_invented_members_count_for_nothing_and_keep_nobody_out(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=SETTINGS, full_map=True) as mesh:
        await trio.sleep(20)
        victim = mesh.nodes[2]
        await Liar(mesh, victim).say(*batches(invented(1000, seed=1)))
        stats = victim.dht.stats()
        assert stats["members_pending"] <= 2 * SETTINGS.map_members + 64
        assert stats["peer_records_pending"] <= 2 * SETTINGS.map_members + 64
        assert stats["peer_records_over_budget"] + stats["requests_over_budget"] > 0
        newcomer = await mesh.add()
        await trio.sleep(60)
        for node in mesh.nodes:
            assert node.dht.stats()["full_map"] == 1
            assert node.dht.stats()["members"] == 7
            assert node is newcomer or newcomer.peer in node.dht._gossip.map.members
        assert all(node.dht.stats()["members_pending"] == 0 for node in mesh.nodes[:2])
        await trio.sleep(1200)
        assert victim.dht.stats()["members_pending"] == 0
        assert victim.dht.stats()["members"] == 7
        assert (await victim.dht.announce([(b"k" * 32, 1)])).weakest == 6


async def test_a_forged_record_is_held_against_its_teller(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4, settings=SETTINGS, full_map=True) as mesh:
        victim, other = mesh.nodes[1], mesh.nodes[3]
        told = victim.dht._gossip.map.tell([other.peer], trio.current_time())[0]
        forged = told.record[:-1] + bytes([told.record[-1] ^ 1])
        liar = Liar(mesh, victim)
        assert await liar.say(News((Told(forged, 900),), ())) == [Noted()]
        assert victim.dht.stats()["peer_records_forged"] == 1
        assert victim.dht._contacts.is_down(liar.host.peer_id)
        assert other.peer in victim.dht._gossip.map.members


async def test_who_never_stops_asking_is_told_to_wait(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3, settings=SETTINGS, full_map=True) as mesh:
        liar = Liar(mesh, mesh.nodes[1])
        answers = await liar.say(*[Compare(10, bytes(8 << 10))] * 20)
        assert isinstance(answers[0], Listing)
        assert isinstance(answers[-1], Refused)
        assert answers[-1].retry_after is not None


async def test_streams_that_break_the_protocol_are_reset(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2, settings=SETTINGS, full_map=True) as mesh:
        liar = Liar(mesh, mesh.nodes[1])
        for junk in (encode_frame(b"\xc1"), encode_frame(bytes(600 * 1024)), b"\xff" * 9):
            stream = await liar.host.open_stream(mesh.nodes[1].peer, PEERS_PROTOCOL)
            try:
                await stream.write(junk)
                assert await stream.read_some() == b""
            except PeerError:
                continue
        assert mesh.nodes[1].dht.stats()["requests_malformed"] == 3


async def test_naming_a_member_as_silent_makes_others_look_and_believe_their_eyes(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6, settings=SETTINGS, full_map=True) as mesh:
        await trio.sleep(20)
        victim, alive, dead = mesh.nodes[1], mesh.nodes[2], mesh.nodes[3]
        mesh.kill(dead)
        await Liar(mesh, victim).say(News((), (alive.peer, dead.peer)))
        # Which of them asks whom in a round is chance: mostly two rounds, seven at times.
        with trio.fail_after(20 * SETTINGS.map_round):
            while any(dead.peer in node.dht._gossip.map.members for node in mesh.nodes):  # noqa: ASYNC110
                await trio.sleep(1)
        assert alive.peer in victim.dht._gossip.map.members
