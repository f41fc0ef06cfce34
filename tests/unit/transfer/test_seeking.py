"""Readers that jump about in a file: the right bytes, and nothing fetched that nobody wants."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from meshnode.errors import NotFoundError, TransferError, UsageError
from meshnode.node.content import Link
from meshnode.node.transfer import stream as stream_module
from trio.testing import MockClock

SIZE = 2_000_000


async def _put(mesh, path: Path, **peer: object) -> Link:
    for zone in "abc":
        mesh.add(zone, **peer)
    report = await mesh.putter().put([path])
    link = report.sources[0].link
    assert link is not None
    mesh.exchange.started.clear()
    return link


async def _read(reader, length: int) -> bytes:
    found = b""
    while len(found) < length and (part := await reader.read()):
        found += part
    return found[:length]


async def test_bytes_are_right_wherever_the_reader_jumps(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "READ_AHEAD_BYTES", 300_000)
    path = make_file(SIZE)
    data = path.read_bytes()
    link = await _put(mesh, path)
    rng = random.Random(6)
    async with mesh.getter().reader(link) as reader:
        assert reader.size == SIZE
        for _ in range(40):
            at, length = rng.randrange(SIZE + 10), rng.randrange(200_000)
            reader.seek(at)
            if rng.random() < 0.5:
                await trio.sleep(rng.random() / 50)
            assert await _read(reader, length) == data[at : at + length]
    assert mesh.exchange.in_flight == []


async def test_a_jump_cancels_what_is_no_longer_wanted_and_is_served_first(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "READ_AHEAD_BYTES", 600_000)
    path = make_file(SIZE)
    link = await _put(mesh, path, rate=50_000.0)  # a chunk takes more than a second
    async with mesh.getter().reader(link) as reader:
        await trio.sleep(0.5)
        before = set(mesh.exchange.in_flight)
        assert len(before) >= 4
        began = trio.current_time()
        reader.seek(SIZE - 100_000)
        await reader.read()
        assert trio.current_time() - began < 3
        assert not before & set(mesh.exchange.in_flight)


async def test_going_back_a_little_fetches_nothing_again_that_is_in_reach(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    async with mesh.getter().reader(link) as reader:
        assert await _read(reader, SIZE) == path.read_bytes()
        reader.seek(0)
        assert await _read(reader, SIZE) == path.read_bytes()
        assert await reader.read() == b""
        await trio.sleep(60)
        reader.seek(SIZE)
        assert await reader.read() == b""


async def test_a_place_before_the_beginning_and_a_file_that_is_not_there_are_refused(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1000))
    async with mesh.getter().reader(link) as reader:
        with pytest.raises(UsageError):
            reader.seek(-1)
    with pytest.raises(NotFoundError):
        async with mesh.getter().reader(link, b"nope"):
            pass


async def test_a_chunk_nobody_has_ends_the_reader_with_its_error(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(SIZE))
    for peer in mesh.peers.values():
        peer.die_after_gets = len(peer.gets) + 1
    with trio.fail_after(600), pytest.raises(TransferError, match="could not be fetched"):
        async with mesh.getter().reader(link) as reader:
            await _read(reader, SIZE)
