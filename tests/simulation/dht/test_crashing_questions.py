"""Errors nobody foresaw, and disks that are full: the DHT goes on, and says so in its counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht import MemoryBackend, Row, open_dht
from meshnode.dht.backend import RowKind
from meshnode.dht.framing import FrameReader, encode_frame
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import RECORDS_PROTOCOL
from meshnode.errors import PeerError, QuotaError, UsageError
from meshnode.node.transport.sim import SimHost, SimLink, open_sim_network
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
MAP_KEYED_BY_A_LIST = b"\x81\x90\x01"


class FullDisk(MemoryBackend):
    full = True

    async def save(self, rows: list[Row]) -> None:
        if self.full:
            raise QuotaError("The disk is full.")
        await super().save(rows)


async def serve_unhashable(stream: Stream) -> None:
    reader = FrameReader(stream, 1 << 20)
    while await reader.wait():
        await reader.read()
        await stream.write(encode_frame(MAP_KEYED_BY_A_LIST))


async def test_an_answer_that_breaks_the_decoder_takes_nothing_down(
    autojump_clock: MockClock,
) -> None:
    async with open_sim_network(seed=1, link=SimLink(latency=0.01)) as network:
        good, bad = network.add_host(), network.add_host()
        network.introduce()
        bad.set_handler(RECORDS_PROTOCOL, serve_unhashable)
        async with open_dht(good, MemoryBackend()) as dht:
            await dht.bootstrap([bad.peer_id])
            await dht.announce([(b"k" * 32, 1)])
            assert await dht.find_chunks([b"x" * 32]) == {b"x" * 32: []}
            await trio.sleep(60)
            assert dht.stats()["peers_misbehaved"] > 0
            assert "questions_crashed" not in dht.stats()


async def test_a_crash_while_taking_in_an_answer_is_that_peers_failure_and_counted(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(3) as mesh:
        node = mesh.nodes[1]

        def crash(peer: PeerId, addresses: object) -> None:
            raise RuntimeError("an address nobody foresaw")

        monkeypatch.setattr(node.host, "known_addresses", lambda peer: [])
        monkeypatch.setattr(node.host, "add_addresses", crash)
        result = await node.dht.find_closest(b"any key")
        assert result.closest == []
        assert await node.dht.bootstrap([mesh.nodes[0].peer]) > 0
        assert node.dht.stats()["questions_crashed"] >= 3
        monkeypatch.undo()
        assert len((await node.dht.find_closest(b"any key")).closest) == 2


async def test_a_crash_inside_the_host_is_a_failure_of_the_peer_that_was_asked(
    mesh_of: MeshOpener, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(3) as mesh:
        node = mesh.nodes[1]

        async def crash(peer: PeerId, protocol: str) -> Stream:
            raise KeyError(peer)

        for other in (mesh.nodes[0], mesh.nodes[2]):
            await node.dht._rpc.dropped(other.peer)
        monkeypatch.setattr(node.host, "open_stream", crash)
        report = await node.dht.announce([(b"k" * 32, 1)])
        assert {failure.peer for failure in report.failed} == {
            mesh.nodes[0].peer,
            mesh.nodes[2].peer,
        }
        assert node.dht.stats()["questions_crashed"] == 2
        with pytest.raises(PeerError):
            await node.dht._client.ping(mesh.nodes[0].peer)
        monkeypatch.undo()


async def test_a_full_disk_stops_neither_serving_nor_finding(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(2) as mesh:
        backend = FullDisk()
        node = await mesh.add(backend=backend)
        await mesh.nodes[0].dht.announce([(b"k" * 32, 1)])
        await trio.sleep(10)
        assert node.dht.stats()["flush_failures"] > 0
        assert node.dht.stats()["chunk_records"] == 1
        with pytest.raises(QuotaError):
            await node.dht.announce([(b"o" * 32, 1)])
        backend.full = False
        await trio.sleep(30)
        (row,) = [row for row in backend.rows.values() if row[0] == RowKind.CHUNKS]
        assert b"k" * 32 in row[3]


async def test_a_backend_that_breaks_its_promise_does_not_end_the_dht(
    autojump_clock: MockClock,
) -> None:
    class Broken(MemoryBackend):
        async def save(self, rows: list[Row]) -> None:
            raise OSError("not what a backend may raise")

    async with open_sim_network(seed=1, link=SimLink(latency=0.01)) as network:
        with trio.move_on_after(30) as scope:
            async with open_dht(network.add_host(), Broken()) as dht:
                dht._rows.save(RowKind.SCHEDULE, b"name", b"", b"progress", 9e9)
                await trio.sleep(10)
                assert dht.stats()["upkeep_crashes"] > 0
                await trio.sleep_forever()
        assert scope.cancelled_caught


async def learn_something_and_end(host: SimHost, error: Exception | None) -> None:
    async with open_dht(host, FullDisk()) as dht:
        dht._rows.save(RowKind.SCHEDULE, b"name", b"", b"progress", 9e9)
        if error is not None:
            raise error


async def test_a_full_disk_at_the_end_does_not_hide_why_the_caller_ended(
    autojump_clock: MockClock,
) -> None:
    async with open_sim_network(seed=1, link=SimLink(latency=0.01)) as network:
        with pytest.raises(UsageError):
            await learn_something_and_end(network.add_host(), UsageError("the caller's own"))
        with trio.move_on_after(5) as scope:
            async with open_dht(network.add_host(), FullDisk()) as dht:
                dht._rows.save(RowKind.SCHEDULE, b"name", b"", b"progress", 9e9)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(QuotaError):
            await learn_something_and_end(network.add_host(), None)


async def test_no_more_than_eight_peers_are_greeted_at_once_and_64_in_all(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sim_network(seed=1, link=SimLink(latency=0.01)) as network:
        host = network.add_host()
        at_once, most, tried = 0, 0, 0

        async def connect(peer: PeerId) -> None:
            nonlocal at_once, most, tried
            at_once, tried = at_once + 1, tried + 1
            most = max(most, at_once)
            try:
                await trio.sleep(0.5)
            finally:
                at_once -= 1
            raise PeerError("nobody there")

        monkeypatch.setattr(host, "connect", connect)
        async with open_dht(host, MemoryBackend()) as dht:
            peers = [PeerId.from_ed25519(bytes([i]) * 32) for i in range(200)]
            assert await dht.bootstrap(peers) == 0
            assert (most, tried) == (8, 64)


async def test_greeting_ends_in_time_even_when_every_dial_hangs(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sim_network(seed=1, link=SimLink(latency=0.01)) as network:
        host = network.add_host()

        async def connect(peer: PeerId) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(host, "connect", connect)
        async with open_dht(host, MemoryBackend()) as dht:
            began = trio.current_time()
            await dht.bootstrap([PeerId.from_ed25519(bytes([i]) * 32) for i in range(64)])
            assert trio.current_time() - began <= 21
