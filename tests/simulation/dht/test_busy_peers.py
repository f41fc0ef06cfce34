"""Peers that announce or ask faster than their share, and peers that always say they are busy."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from meshnode.dht import DhtSettings, MemoryBackend, open_dht
from meshnode.dht.framing import FrameReader, encode_frame
from meshnode.dht.host import Stream
from meshnode.dht.kad_wire import KadMessage, Kind, decode_message, encode_message
from meshnode.dht.records_wire import (
    Announce,
    Answer,
    Neighbours,
    Refused,
    Verdicts,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from meshnode.dht.settings import KAD_PROTOCOL, RECORDS_PROTOCOL
from meshnode.node.transport.sim import SimLink, open_sim_network
from trio.testing import MockClock

MeshOpener = Callable[..., AbstractAsyncContextManager[Any]]
TIGHT = DhtSettings(written_per_second=1000, written_burst=2000)


def keys(count: int) -> list[tuple[bytes, int]]:
    rng = random.Random(count)
    return [(rng.randbytes(32), 1) for _ in range(count)]


async def test_a_peer_on_many_streams_is_told_to_wait_and_writes_no_more_than_its_share(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1, settings=TIGHT) as mesh:
        server, host = mesh.nodes[0], mesh.network.add_host()
        host.add_addresses(server.peer, server.host.addresses())
        refusals: list[Refused] = []

        async def flood(number: int) -> None:
            stream = await host.open_stream(server.peer, RECORDS_PROTOCOL)
            reader = FrameReader(stream, 1 << 20)
            for part in range(20):
                digest = bytes([number, part])
                digests = tuple(digest + i.to_bytes(30, "big") for i in range(500))
                request = Announce("", 3600, digests, (1,) * 500)
                await stream.write(encode_frame(encode_request(request)))
                answer = decode_answer(await reader.read(), Verdicts, 500)
                if isinstance(answer, Refused):
                    refusals.append(answer)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(flood, number)
        took = trio.current_time() - began
        assert server.dht.stats()["chunk_records"] <= 2000 + 1000 * took
        assert {answer.reason for answer in refusals} == {"busy"}
        assert all(0 < (answer.retry_after or 0) <= 0.5 for answer in refusals)
        assert server.dht.stats()["requests_over_budget"] == len(refusals)


async def test_a_publisher_with_more_than_a_burst_waits_and_gets_it_all_announced(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    settings = DhtSettings(written_per_second=4096, written_burst=4096)
    async with mesh_of(3, settings=settings) as mesh:
        began = trio.current_time()
        report = await mesh.nodes[1].dht.announce(keys(12_288))
        assert report.weakest == 2
        assert not report.failed
        assert trio.current_time() - began >= 1.9
        assert mesh.nodes[0].dht.stats()["chunk_records"] == 12_288


async def test_a_finder_waits_for_a_busy_peer_too(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    settings = DhtSettings(asked_per_second=16_384, asked_burst=4096)
    async with mesh_of(3, settings=settings) as mesh:
        wanted = keys(8192)
        await mesh.nodes[0].dht.announce(wanted)
        newcomer = await mesh.add()
        mesh.kill(mesh.nodes[0])
        found = await newcomer.dht.find_chunks([digest for digest, _ in wanted])
        assert all(found.values())


async def test_questions_of_the_standard_wire_beyond_the_share_cost_the_stream(
    mesh_of: MeshOpener, autojump_clock: MockClock
) -> None:
    async with mesh_of(1, settings=DhtSettings(asked_per_second=16, asked_burst=160)) as mesh:
        server, host = mesh.nodes[0], mesh.network.add_host()
        host.add_addresses(server.peer, server.host.addresses())
        stream = await host.open_stream(server.peer, KAD_PROTOCOL)
        question = encode_message(KadMessage(Kind.FIND_NODE, b"any key"))
        await stream.write(encode_frame(question) * 40)
        await trio.sleep(1)
        assert server.dht.stats()["requests_served"] <= 12
        assert server.dht.stats()["requests_over_budget"] == 1


@pytest.mark.parametrize(
    ("retry_after", "tries", "limit"),
    [(1.9, 3, 4.5), (3000.0, 1, 0.5)],
    ids=["again and again", "for long"],
)
async def test_a_peer_that_is_always_busy_holds_an_announcement_up_for_seconds_at_most(
    autojump_clock: MockClock, retry_after: float, tries: int, limit: float
) -> None:
    asked = 0

    async def serve_busy(stream: Stream) -> None:
        nonlocal asked
        reader = FrameReader(stream, 1 << 20)
        while await reader.wait():
            answer: Answer = Neighbours(0, ())
            if isinstance(decode_request(await reader.read()), Announce):
                asked += 1
                answer = Refused("busy", retry_after)
            await stream.write(encode_frame(encode_answer(answer)))

    async def serve_kad(stream: Stream) -> None:
        reader = FrameReader(stream, 1 << 20)
        while await reader.wait():
            request = decode_message(await reader.read())
            answer = KadMessage(request.kind, request.key)
            await stream.write(encode_frame(encode_message(answer)))

    async with open_sim_network(seed=1, link=SimLink(latency=0.01)) as network:
        good, bad = network.add_host(), network.add_host()
        network.introduce()
        bad.set_handler(RECORDS_PROTOCOL, serve_busy)
        bad.set_handler(KAD_PROTOCOL, serve_kad)
        async with open_dht(good, MemoryBackend()) as dht:
            await dht.bootstrap([bad.peer_id])
            await trio.sleep(1)  # what a peer that was just met is offered has been offered
            began = trio.current_time()
            report = await dht.announce(keys(10_000))
            took = trio.current_time() - began
        assert asked == tries
        assert took < limit
        assert [failure.peer for failure in report.failed] == [bad.peer_id]
