"""Framing and the pool, over the simulated host."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.host import Buffer, Stream
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.sim import SimHost, SimNetwork, open_sim_network
from meshnode.node.transport.streams import BufferedStream, StreamPool, open_stream_pool
from meshnode.node.transport.streams import encode_varint as varint
from trio.testing import MockClock, wait_all_tasks_blocked

ANSWER = "/test/answer/1"


class Recorded:
    """A stream whose bytes come in the given pieces, and which remembers what was written."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.written: list[bytes] = []
        self.peer = PeerId.from_ed25519(bytes(32))
        self.protocol = "/test/1"

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > max_bytes:
            self.pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def write(self, data: Buffer) -> None:
        self.written.append(bytes(data))

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


class Direct(Recorded):
    """One that also reads into memory given to it, and remembers how much."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__(*pieces)
        self.direct: list[int] = []

    async def read_into(self, target: memoryview) -> int:
        data = await self.read_some(len(target))
        target[: len(data)] = data
        self.direct.append(len(data))
        return len(data)


async def test_large_bodies_are_read_straight_into_their_place_and_small_ones_read_ahead() -> None:
    body = random.Random(7).randbytes(300_000)
    wire = b"head" + body + b"tail"
    sizes = [4 + 1000, 100_000, 60_000, 130_000]
    direct, plain = Direct(*cut(wire, sizes)), Recorded(*cut(wire, sizes))
    for inner in (direct, plain):
        stream = BufferedStream(inner)
        assert await stream.read_exactly(4) == b"head"
        target = bytearray(len(body))
        await stream.read_into(memoryview(target))
        assert target == body
        assert await stream.read_exactly(4) == b"tail"
        assert stream.received == len(wire)
        assert await stream.at_end()
    assert direct.direct == [100_000, 60_000, 130_000, 9000], "1000 bytes had been read ahead"


async def test_a_body_read_straight_into_its_place_that_ends_early_is_an_error() -> None:
    stream = BufferedStream(Direct(bytes(5000)))
    with pytest.raises(PeerError, match="5000 bytes too early"):
        await stream.read_into(memoryview(bytearray(10_000)))
    assert not stream.reusable


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in [*pieces, data] if piece]


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.binary(max_size=400), max_size=8),
    sizes=st.lists(st.integers(1, 90), max_size=60),
)
def test_frames_survive_any_cutting_of_the_stream(frames: list[bytes], sizes: list[int]) -> None:
    async def main() -> None:
        wire = b"".join(varint(len(f)) + f + len(f).to_bytes(4, "big") + f for f in frames)
        stream = BufferedStream(Recorded(*cut(wire, sizes)))
        for frame in frames:
            assert not await stream.at_end()
            assert await stream.read_frame(400) == frame
            target = bytearray(4 + len(frame))
            await stream.read_into(memoryview(target))
            assert target[4:] == frame
        assert await stream.at_end()

    trio.run(main)


@settings(max_examples=60, deadline=None)
@given(wire=st.binary(max_size=40))
def test_hostile_bytes_are_a_frame_or_a_peer_error(wire: bytes) -> None:
    async def main() -> None:
        for read in ("read_frame", "read_u32_frame"):
            stream = BufferedStream(Recorded(*cut(wire, [])))
            try:
                frame = await getattr(stream, read)(30)
            except PeerError:
                continue
            assert len(frame) <= 30
            assert frame in wire

    trio.run(main)


@pytest.mark.parametrize(
    "wire", [b"\x05abc", b"\x80", b"\x81\x00", b"\xff" * 9, b"\x65" + b"a" * 101]
)
async def test_a_bad_frame_is_a_peer_error(wire: bytes) -> None:
    with pytest.raises(PeerError):
        await BufferedStream(Recorded(wire)).read_frame(100)


async def test_a_truncated_body_says_how_much_is_missing() -> None:
    with pytest.raises(PeerError, match="7 bytes too early"):
        await BufferedStream(Recorded(b"abc")).read_exactly(10)
    with pytest.raises(PeerError, match="6 bytes too early"):
        await BufferedStream(Recorded(b"ab", b"cd")).read_into(memoryview(bytearray(10)))


async def test_small_frames_are_written_at_once_and_large_ones_not_copied() -> None:
    inner = Recorded()
    stream = BufferedStream(inner)
    await stream.write_frame(b"abc")
    await stream.write_u32_frame(memoryview(b"abc"))
    await stream.write_frame(bytes(300_000))
    assert inner.written == [b"\x03abc", b"\0\0\0\3abc", varint(300_000), bytes(300_000)]


async def test_read_some_hands_out_what_was_read_ahead() -> None:
    stream = BufferedStream(Recorded(b"\x03abcdef"))
    assert await stream.read_frame(10) == b"abc"
    assert await stream.read_some(2) == b"de"
    assert await stream.read_some(9) == b"f"
    assert await stream.read_some(9) == b""


# --- the pool -------------------------------------------------------------------------------------


class Responder:
    """Answers frames with themselves, reversed; counts streams; can forget them while idle."""

    def __init__(self) -> None:
        self.streams = 0
        self.open: list[Stream] = []

    async def serve(self, inner: Stream) -> None:
        self.streams += 1
        self.open.append(inner)
        stream = BufferedStream(inner)
        while not await stream.at_end():
            await stream.write_frame((await stream.read_frame(1000))[::-1])


@asynccontextmanager
async def served() -> AsyncIterator[tuple[SimNetwork, SimHost, SimHost, Responder]]:
    async with open_sim_network(1) as network:
        one, other = network.add_host(), network.add_host()
        network.introduce()
        responder = Responder()
        other.set_handler(ANSWER, responder.serve)
        yield network, one, other, responder


async def ask(pool: StreamPool, peer: PeerId, text: bytes = b"abc") -> bytes:
    return await pool.request(peer, ANSWER, text, max_response=1000)


async def test_one_stream_serves_many_requests(autojump_clock: MockClock) -> None:
    async with served() as (_, one, other, responder), open_stream_pool(one) as pool:
        for _ in range(5):
            assert await ask(pool, other.peer_id) == b"cba"
        assert responder.streams == 1
        assert pool.idle_streams == 1


async def test_a_stream_that_died_while_idle_costs_a_fresh_one_not_an_error(
    autojump_clock: MockClock,
) -> None:
    async with served() as (_, one, other, responder), open_stream_pool(one) as pool:
        await ask(pool, other.peer_id)
        await responder.open[0].reset()
        assert await ask(pool, other.peer_id) == b"cba"
        assert responder.streams == 2


async def test_a_fresh_stream_that_dies_is_an_error(autojump_clock: MockClock) -> None:
    async with served() as (_, one, other, _), open_stream_pool(one) as pool:
        calls = 0

        async def hang_up(stream: Stream) -> None:
            nonlocal calls
            calls += 1
            await stream.read_some()

        other.set_handler(ANSWER, hang_up)
        with pytest.raises(PeerError):
            await ask(pool, other.peer_id)
        assert calls == 1
        assert pool.idle_streams == 0


async def test_an_answer_cut_short_is_not_asked_for_again(autojump_clock: MockClock) -> None:
    async with served() as (_, one, other, _), open_stream_pool(one) as pool:
        calls = 0

        async def half(inner: Stream) -> None:
            nonlocal calls
            stream = BufferedStream(inner)
            while not await stream.at_end():
                calls += 1
                await stream.read_frame(1000)
                if calls == 2:
                    await stream.write(b"\x50half")
                    return
                await stream.write_frame(b"whole")

        other.set_handler(ANSWER, half)
        assert await ask(pool, other.peer_id) == b"whole"
        with pytest.raises(PeerError, match="too early"):
            await ask(pool, other.peer_id)
        assert calls == 2


@pytest.mark.parametrize("spoil", ["error", "cancel", "unread", "close"])
async def test_a_spoilt_stream_is_not_kept(autojump_clock: MockClock, spoil: str) -> None:
    async with served() as (_, one, other, responder), open_stream_pool(one) as pool:
        with trio.move_on_after(1):
            try:
                async with pool.lease(other.peer_id, ANSWER) as stream:
                    await stream.write_frame(b"abc")
                    if spoil == "error":
                        raise KeyError
                    if spoil == "cancel":
                        await trio.sleep(2)
                    if spoil == "unread":
                        await stream.read_exactly(1)
                    if spoil == "close":
                        await stream.close()
            except KeyError:
                assert spoil == "error"
        assert pool.idle_streams == 0
        assert await ask(pool, other.peer_id) == b"cba"
        assert responder.streams == 2


async def test_leases_beyond_the_bound_wait_and_few_streams_are_kept(
    autojump_clock: MockClock,
) -> None:
    async with (
        served() as (_, one, other, responder),
        open_stream_pool(one, max_streams=3, max_idle=2) as pool,
    ):
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                async with pool.lease(other.peer_id, ANSWER):
                    await trio.sleep(1)

            for _ in range(9):
                nursery.start_soon(use)
            start = trio.current_time()
        assert 3 <= trio.current_time() - start < 3.5
        await wait_all_tasks_blocked()
        assert pool.idle_streams == 2
        assert responder.streams < 9


async def test_idle_streams_go_with_the_connection_and_with_age(
    autojump_clock: MockClock,
) -> None:
    async with served() as (network, one, other, _), open_stream_pool(one, max_age=30) as pool:
        await ask(pool, other.peer_id)
        network.drop(one.peer_id, other.peer_id)
        await wait_all_tasks_blocked()
        assert pool.idle_streams == 0
        await ask(pool, other.peer_id)
        await trio.sleep(20)
        assert pool.idle_streams == 1
        await trio.sleep(40)
        assert pool.idle_streams == 0
        assert one.connected_peers() == {other.peer_id}


async def test_errors_of_the_block_come_out_as_they_are(autojump_clock: MockClock) -> None:
    async with served() as (_, one, _, _):
        with pytest.raises(KeyError):
            async with open_stream_pool(one):
                raise KeyError
