"""Every fifth member colludes: names nobody but accomplices and inventions, takes records and
forgets them. What the others announce is found all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from meshnode.dht import DhtSettings
from meshnode.dht.kad_wire import KadMessage, Kind, PeerAddresses
from meshnode.dht.keyspace import (
    PeerIndex,
    chunk_position,
    common_bits,
    peer_position,
    position,
)
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records_wire import (
    Announce,
    Answer,
    Find,
    Found,
    Near,
    Neighbours,
    Request,
    Verdict,
    Verdicts,
    Withdraw,
    Withdrawn,
)
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]

K = 8


def inventions(count: int, rng: random.Random) -> list[PeerAddresses]:
    return [
        PeerAddresses(
            PeerId.from_ed25519(rng.randbytes(32)), (f"/ip4/10.9.{i >> 8}.{i & 255}/tcp/9",)
        )
        for i in range(count)
    ]


class Collusion:
    """What all colluders answer, from one list of accomplices and inventions."""

    def __init__(self, colluders: list[Any], rng: random.Random) -> None:
        known = [PeerAddresses(n.peer, tuple(n.host.addresses())) for n in colluders]
        known += inventions(400, rng)
        self._addresses = {entry.peer: entry for entry in known}
        self._index = PeerIndex(self._addresses)
        self.asked = 0
        for node in colluders:
            node.dht._server.answer_records = self.answer_records
            node.dht._server.answer_kad = self.answer_kad

    def _near(self, target: int, count: int) -> list[PeerAddresses]:
        return [self._addresses[peer] for peer in self._index.closest(target, count)]

    def answer_records(self, sender: PeerId, request: Request) -> Answer:
        self.asked += 1
        match request:
            case Announce(digests=digests):
                return Verdicts((Verdict.STORED,) * len(digests))
            case Find(digests, _):
                return Found((), ((),) * len(digests))
            case Withdraw():
                return Withdrawn(0)
            case Near(targets, _):
                named = {e.peer: e for target in targets for e in self._near(target, 30)}
                return Neighbours(3, tuple(named.values())[:256])

    def answer_kad(self, sender: PeerId, request: KadMessage) -> KadMessage:
        closer = tuple(self._near(position(request.key), K))
        kept = request.value if request.kind is Kind.PUT_VALUE else None
        return KadMessage(request.kind, request.key, kept, closer=closer)


async def found_by_others(writer: Any, readers: list[Any], digests: list[bytes]) -> float:
    """The share of `digests` that readers find the writer for."""
    right = 0
    for reader in readers:
        answer = await reader.dht.find_chunks(digests)
        right += sum(writer.peer in {r.peer for r in records} for records in answer.values())
    return right / (len(readers) * len(digests))


async def test_colluders_spread_over_a_large_mesh_hide_next_to_nothing(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=DhtSettings(k=K)) as mesh:
        await mesh.populate(80)
        rng = random.Random(31)
        colluders = rng.sample(mesh.nodes, 16)
        collusion = Collusion(colluders, rng)
        honest = [node for node in mesh.nodes if node not in colluders]
        digests = [rng.randbytes(32) for _ in range(300)]
        writer, *readers = rng.sample(honest, 4)
        await writer.dht.announce([(digest, 7) for digest in digests])
        assert await found_by_others(writer, readers, digests) >= 0.99
        assert collusion.asked > 16


def crowding(digest: bytes, count: int, bits: int, rng: random.Random) -> list[PeerId]:
    """Peers that share `bits` leading bits with the position of a chunk."""
    out: list[PeerId] = []
    while len(out) < count:
        peer = PeerId.from_ed25519(rng.randbytes(32))
        if common_bits(peer_position(peer), chunk_position(digest)) >= bits:
            out.append(peer)
    return out


async def test_colluders_that_crowd_around_a_key_do_not_have_it_to_themselves(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(0, settings=DhtSettings(k=K)) as mesh:
        await mesh.populate(56)
        rng = random.Random(32)
        digest = rng.randbytes(32)
        honest = list(mesh.nodes)
        for peer in crowding(digest, 14, 10, rng):
            await mesh.add(peer=peer)
        colluders = [node for node in mesh.nodes if node not in honest]
        nearest = sorted(mesh.nodes, key=lambda n: peer_position(n.peer) ^ chunk_position(digest))
        assert {node.peer for node in nearest[:K]} <= {node.peer for node in colluders}
        Collusion(colluders, rng)
        writer, *readers = rng.sample(honest, 7)
        report = await writer.dht.announce([(digest, 7)])
        assert {node.peer for node in colluders} & set(report.asked)
        assert {node.peer for node in honest} & set(report.asked)
        assert await found_by_others(writer, readers, [digest]) == 1.0


@pytest.mark.parametrize("size", [100, 1000])
def test_only_a_crowd_widens_the_circle_of_a_key(size: int) -> None:
    rng = random.Random(size)
    peers = [PeerId.from_ed25519(rng.randbytes(32)) for _ in range(size)]
    index = PeerIndex(peers)
    targets = [rng.getrandbits(256) for _ in range(500)]
    wide = [t for t in targets if len(index.responsible(t, 20, size)) > 20]
    assert not wide
    digest = rng.randbytes(32)
    target = chunk_position(digest)
    crowd = crowding(digest, 20, size.bit_length() + 2, rng)
    crowded = PeerIndex([*peers, *crowd])
    chosen = crowded.responsible(target, 20, size + 20)
    assert set(chosen[:20]) == set(crowded.closest(target, 20))
    assert len(set(chosen) & set(peers)) >= 8
    assert len(chosen) == len(set(chosen)) <= 40
