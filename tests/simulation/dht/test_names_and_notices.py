"""Signed values in the mesh: the newest name wins, stale holders are corrected, notices arrive."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht import DhtSettings
from meshnode.dht.framing import FrameReader, encode_frame
from meshnode.dht.kad_wire import KadMessage, Kind, decode_message, encode_message
from meshnode.dht.names import NameRecord, sign_name
from meshnode.dht.notices import Notice, sign_notice
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import KAD_PROTOCOL
from meshnode.errors import PeerError, RefusedError
from meshnode.node.identity import Identity
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
EPOCH = 1_800_000_000
DAY = 86_400


ALICE, BOB, EVE = (Identity.from_seed(bytes([i]) * 32) for i in (1, 2, 3))


def name(sequence: int, *, days: float = 7) -> NameRecord:
    value = f"meshnode:{sequence}".encode()
    expires = EPOCH + int(days * DAY)
    return sign_name(ALICE, "photos", value, sequence=sequence, expires=expires)


def notice(number: int, sender: Identity = ALICE) -> Notice:
    created = EPOCH + number
    return sign_notice(sender, BOB.peer_id, b"%d" % number, created=created, expires=created + 3600)


async def test_a_name_is_read_as_it_was_last_published_and_says_how_many_agree(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(8) as mesh:
        report = await mesh.nodes[1].dht.put_name(name(1))
        assert len(report.stored_on) == 7
        assert report.query.count("stored") == 7
        answer = await mesh.nodes[2].dht.get_name(ALICE.peer_id, "photos")
        assert answer.record == name(1)
        assert 5 <= answer.agreed == answer.answered
        await mesh.nodes[3].dht.put_name(name(2))
        for node in mesh.nodes:
            answer = await node.dht.get_name(ALICE.peer_id, "photos")
            assert answer.record == name(2)
            assert answer.agreed >= 5
        missing = await mesh.nodes[2].dht.get_name(ALICE.peer_id, "other")
        assert missing.record is None
        assert missing.query.asked == 7
        with pytest.raises(RefusedError):
            await mesh.nodes[4].dht.put_name(name(1))


async def test_who_kept_an_older_name_or_none_is_corrected_by_the_next_reader(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(9) as mesh:
        reader, fresh, *others = mesh.nodes
        old, new, key = name(1), name(2), name(1).key
        for node in others[:5]:
            await reader.dht._client.put_value(node.peer, key, old.encoded)
        await reader.dht._client.put_value(fresh.peer, key, new.encoded)

        def holders(record: NameRecord) -> set[PeerId]:
            kept = {n.peer: n.dht._values.get(key, EPOCH) for n in mesh.nodes}
            return {peer for peer, found in kept.items() if found and found[0] == record.encoded}

        assert (holders(new), len(holders(old))) == ({fresh.peer}, 5)
        answer = await reader.dht.get_name(ALICE.peer_id, "photos")
        for _ in range(30):
            # Five of six copies may be old ones; each read corrects those that it met.
            if answer.record == new:
                break
            await trio.sleep(1)
            answer = await reader.dht.get_name(ALICE.peer_id, "photos")
        assert answer.record == new
        assert answer.agreed < answer.answered
        await trio.sleep(1)
        assert len(holders(new)) >= 4
        assert len(holders(old)) < 5
        assert reader.dht.stats()["values_repaired"] >= 1
        again = await reader.dht.get_name(ALICE.peer_id, "photos")
        assert again.record == new
        assert again.agreed > answer.agreed


async def test_forged_and_stale_names_are_neither_stored_nor_returned(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(3) as mesh:
        server, reader = mesh.nodes[0], mesh.nodes[1]
        eve = mesh.nodes[2].dht._client
        forged = sign_name(EVE, "photos", b"meshnode:evil", sequence=99, expires=EPOCH + DAY)
        with pytest.raises(PeerError):
            await eve.put_value(server.peer, name(1).key, forged.encoded)
        assert server.dht.stats()["values_forged"] >= 1
        await trio.sleep(60)
        await reader.dht.put_name(name(5))
        with pytest.raises(PeerError, match="did not keep") as refusal:
            await eve.put_value(server.peer, name(4).key, name(4).encoded)
        assert refusal.value.reason == "outdated"
        answer = await server.dht.get_name(ALICE.peer_id, "photos")
        assert answer.record == name(5)


async def test_a_peer_that_returns_forged_values_is_not_believed(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        liar, honest, reader = mesh.nodes[1], mesh.nodes[2], mesh.nodes[3]
        forged = sign_name(EVE, "photos", b"meshnode:evil", sequence=99, expires=EPOCH + DAY)

        async def lie(stream: Any) -> None:
            frames = FrameReader(stream, 1 << 17)
            while await frames.wait():
                request = decode_message(await frames.read())
                value = forged.encoded if request.kind is Kind.GET_VALUE else None
                answer = KadMessage(request.kind, request.key, value)
                await stream.write(encode_frame(encode_message(answer)))

        await honest.dht.put_name(name(1))
        liar.host.set_handler(KAD_PROTOCOL, lie)
        await reader.dht._rpc.dropped(liar.peer)
        answer = await reader.dht.get_name(ALICE.peer_id, "photos")
        assert answer.record == name(1)
        failed = [entry.peer for entry in answer.query.peers if entry.outcome == "failed"]
        assert failed == [liar.peer]
        assert reader.dht.stats()["peers_misbehaved"] == 1


async def test_a_name_lives_as_long_as_somebody_repeats_it_and_never_beyond_its_end(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4, settings=DhtSettings(republish=600, record_ttl=1200, sweep=60)) as mesh:
        reader, stays, leaves = mesh.nodes[1:]
        other = sign_name(EVE, "other", b"v", sequence=1, expires=EPOCH + 7 * DAY)
        await stays.dht.put_name(name(1, days=1 / 24))
        await leaves.dht.put_name(other)
        await mesh.stop(leaves)
        await trio.sleep(2400)
        found = await reader.dht.get_name(ALICE.peer_id, "photos")
        assert found.record == name(1, days=1 / 24)
        assert (await reader.dht.get_name(EVE.peer_id, "other")).record is None
        await trio.sleep(1400)
        assert (await reader.dht.get_name(ALICE.peer_id, "photos")).record is None
        assert reader.dht.stats()["names"] == 0
        assert stays.dht.stats()["own_names"] == 0


async def test_notices_of_many_senders_reach_a_recipient_that_was_away(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(6) as mesh:
        posted = [notice(1), notice(2), notice(3, EVE)]
        for node, one in zip(mesh.nodes[1:], posted, strict=False):
            report = await node.dht.post_notice(one)
            assert len(report.stored_on) == 5
        await mesh.stop(mesh.nodes[1])
        newcomer = await mesh.add()
        answer = await newcomer.dht.notices_for(BOB.peer_id)
        assert list(answer.notices) == posted
        assert answer.answered >= 4
        nobody = await newcomer.dht.notices_for(EVE.peer_id)
        assert nobody.notices == ()
        await trio.sleep(3700)
        assert not (await newcomer.dht.notices_for(BOB.peer_id)).notices


async def test_a_flood_of_notices_is_bounded_and_others_still_get_through(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(4) as mesh:
        flooder, friend, server = mesh.nodes[1], mesh.nodes[2], mesh.nodes[0]
        rng = random.Random(8)
        for number in range(60):
            sender = Identity.from_seed(rng.randbytes(32))
            await flooder.dht.post_notice(notice(number, sender if number % 2 else EVE))
        assert server.dht.stats()["notices"] <= 24
        report = await friend.dht.post_notice(notice(99))
        assert len(report.stored_on) == 3
        found = await server.dht.notices_for(BOB.peer_id)
        assert notice(99) in found.notices
