"""The tasks around the cores, over a socket pair and without encryption."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from meshnode.dht.host import Buffer
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.native_connection import NativeConnection
from meshnode.node.transport.native_socket import NativeSocket
from meshnode.node.transport.native_stream import NativeStream
from meshnode.node.transport.yamux_limits import YamuxLimits

PEER = PeerId.from_ed25519(bytes(32))
MIB = 1 << 20


FORGED = bytes(range(0xE0, 0x100))
"""Long enough that random bytes, cut anywhere, never look like it."""


class InTheClear:
    """The face of a Noise session; `FORGED` at the start of what arrives plays a forged frame."""

    def __init__(self) -> None:
        self.sealed = 0

    def seal_into(self, pieces: Sequence[Buffer], scratch: memoryview) -> bytes:
        self.sealed += 1
        return b"".join(pieces)

    def open(self, received: memoryview) -> tuple[list[bytes], int]:
        if received[: len(FORGED)] == FORGED:
            raise PeerError("it is forged")
        return [bytes(received)], len(received)


async def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


def native(
    stream: trio.SocketStream,
    *,
    initiator: bool = False,
    reasons: list[str] | None = None,
    stall: float = 5.0,
    limits: YamuxLimits | None = None,
) -> NativeConnection:
    return NativeConnection(
        PEER,
        NativeSocket(stream),
        InTheClear(),
        initiator=initiator,
        stall_timeout=stall,
        limits=limits,
        violated=(reasons if reasons is not None else []).append,
    )


@asynccontextmanager
async def pair(
    stall: float = 5.0, limits: YamuxLimits | None = None
) -> AsyncIterator[tuple[NativeConnection, NativeConnection]]:
    near, far = await sockets()
    one = native(near, initiator=True, stall=stall, limits=limits)
    other = native(far, stall=stall, limits=limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)
        yield one, other
        one.close("the test is over")
        other.close("the test is over")


async def both_ends(
    one: NativeConnection, other: NativeConnection
) -> tuple[NativeStream, NativeStream]:
    return one.open(), await other.accept()


async def send(stream: NativeStream, data: bytes) -> None:
    await stream.write(data)
    stream.close()


async def read_all(stream: NativeStream) -> bytes:
    got = bytearray()
    while data := await stream.read(MIB):
        got += data
    return bytes(got)


async def test_both_sides_write_more_than_all_buffers_before_either_reads() -> None:
    sent = random.Random(1).randbytes(6 * MIB)
    async with pair() as (one, other), trio.open_nursery() as nursery:
        mine, theirs = await both_ends(one, other)
        nursery.start_soon(send, mine, sent)
        nursery.start_soon(send, theirs, sent[::-1])
        await trio.testing.wait_all_tasks_blocked()
        assert await read_all(theirs) == sent
        assert await read_all(mine) == sent[::-1]
        assert (one.streams, other.streams) == (0, 0)


async def test_a_write_may_change_its_buffer_once_it_returns() -> None:
    async with pair() as (one, other):
        mine, theirs = await both_ends(one, other)
        buffer = bytearray(b"a" * MIB)
        async with trio.open_nursery() as nursery:

            async def scribble() -> None:
                for letter in b"abcdefgh":
                    buffer[:] = bytes([letter]) * MIB
                    await mine.write(buffer)
                mine.close()

            nursery.start_soon(scribble)
            got = await read_all(theirs)
        assert got == b"".join(bytes([letter]) * MIB for letter in b"abcdefgh")


async def test_read_into_fills_the_target_as_bytes_come() -> None:
    async with pair() as (one, other), trio.open_nursery() as nursery:
        mine, theirs = await both_ends(one, other)
        sent = random.Random(2).randbytes(MIB)
        nursery.start_soon(send, mine, sent)
        target = memoryview(bytearray(MIB))
        done = 0
        while size := await theirs.read_into(target[done:]):
            done += size
            if done == MIB:
                break
        assert target == sent
        assert await theirs.read_into(target) == 0


async def test_reads_cancelled_at_any_moment_lose_nothing() -> None:
    sent = random.Random(3).randbytes(2 * MIB)
    async with pair() as (one, other), trio.open_nursery() as nursery:
        mine, theirs = await both_ends(one, other)
        nursery.start_soon(send, mine, sent)
        got = bytearray()
        ended = False
        turns = 0
        while not ended:
            turns += 1
            with trio.CancelScope() as scope:
                if turns % 2:
                    nursery.start_soon(cancel_soon, scope, turns % 3)
                data = await theirs.read(50_000)
                got += data
                ended = not data
        assert got == sent


async def cancel_soon(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_writes_cancelled_at_any_moment_leave_connection_and_stream_in_order() -> None:
    async with pair() as (one, other):
        for ticks in range(12):
            mine, theirs = await both_ends(one, other)
            got = bytearray()
            async with trio.open_nursery() as nursery:

                async def collect(theirs: NativeStream = theirs, got: bytearray = got) -> None:
                    while data := await theirs.read(60_000):
                        got += data

                nursery.start_soon(collect)
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_soon, scope, ticks)
                    await mine.write(b"a" * (3 * MIB))
                await mine.write(b"z" * 10)
                mine.close()
            assert got == b"a" * (len(got) - 10) + b"z" * 10


async def test_two_writers_take_turns_with_whole_writes() -> None:
    async with pair() as (one, other):
        mine, theirs = await both_ends(one, other)
        async with trio.open_nursery() as nursery:

            async def collect() -> None:
                assert len(await read_all(theirs)) == 40 * 300_000
                await trio.lowlevel.checkpoint()

            async def write(letter: bytes) -> None:
                for _ in range(20):
                    await mine.write(letter * 300_000)

            async with trio.open_nursery() as writers:
                nursery.start_soon(collect)
                writers.start_soon(write, b"a")
                writers.start_soon(write, b"b")
            mine.close()


async def test_a_peer_that_gives_no_credit_fails_the_writer_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair(stall=3) as (one, other):
        mine, _ = await both_ends(one, other)
        began = trio.current_time()
        with pytest.raises(PeerError, match="no credit"):
            await mine.write(bytes(20 * MIB))
        assert 3 <= trio.current_time() - began < 7
        mine.reset()
        again, theirs = await both_ends(one, other)
        await again.write(b"alive")
        assert await theirs.read(9) == b"alive"


async def test_a_peer_that_never_gives_credit_is_counted_and_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = await sockets()
    reasons: list[str] = []
    one = native(near, initiator=True, stall=3, reasons=reasons)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(drain, far, bytearray())
        began = trio.current_time()
        for _ in range(20):
            if one.why_closed is not None:
                break
            async with trio.open_nursery() as writers:
                for _ in range(5):
                    writers.start_soon(starve, one)
        assert trio.current_time() - began >= 4 * 3
        one.close("it was never let go")
    assert reasons == ["no_credit"] * 4 + ["window_shut"]
    assert one.why_closed is not None
    assert "no credit on any stream" in one.why_closed


async def test_a_peer_that_gives_credit_now_and_then_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = await sockets()
    reasons: list[str] = []
    one = native(near, initiator=True, stall=3, reasons=reasons)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(drain, far, bytearray())
        for number in range(6):
            await starve(one)
            if number % 2:
                stream = one.open()
                await far.send_all(struct.pack(">BBHII", 0, 1, 0, stream.state.id, 4096))
                await trio.testing.wait_all_tasks_blocked()
        assert one.why_closed is None
        assert reasons == ["no_credit"] * 6
        one.close("the test is over")


async def test_a_peer_that_gives_a_byte_of_credit_now_and_then_holds_no_writer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = await sockets()
    reasons: list[str] = []
    one = native(near, initiator=True, stall=3, reasons=reasons)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(drain, far, bytearray())
        took = []
        while one.why_closed is None and len(took) < 10:
            async with trio.open_nursery() as dribbling:
                stream = one.open()
                dribbling.start_soon(dribble, far, stream.state.id, 1, 0.5)
                began = trio.current_time()
                with pytest.raises(PeerError, match="no credit"):
                    await stream.write(bytes(300_000))
                took.append(trio.current_time() - began)
                dribbling.cancel_scope.cancel()
        one.close("it was never let go")
    assert took == [3.0] * 4
    assert reasons == ["no_credit"] * 4 + ["window_shut"]


async def test_a_slow_peer_that_gets_on_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = await sockets()
    one = native(near, initiator=True, stall=3)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(drain, far, bytearray())
        stream = one.open()
        nursery.start_soon(dribble, far, stream.state.id, 1500, 0.9)
        began = trio.current_time()
        await stream.write(bytes(300_000))
        assert trio.current_time() - began > 20
        nursery.cancel_scope.cancel()
        one.close("the test is over")


async def dribble(far: trio.SocketStream, stream_id: int, credit: int, every: float) -> None:
    while True:
        await trio.sleep(every)
        await far.send_all(struct.pack(">BBHII", 0, 1, 0, stream_id, credit))
        await trio.testing.wait_all_tasks_blocked()


async def test_what_came_before_a_reset_in_the_same_packet_is_seen_and_no_clean_end() -> None:
    near, far = await sockets()
    serving = native(near)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(serving.run)
        opened = struct.pack(">BBHII", 0, 0, 1, 1, 5) + b"hello"
        await far.send_all(opened + struct.pack(">BBHII", 0, 1, 8, 1, 0))
        stream = await serving.accept()
        assert await stream.read(100) == b"hello"
        with pytest.raises(PeerError, match="reset by the peer"):
            await stream.read(100)
        assert serving.streams == 0
        serving.close("the test is over")


async def test_a_task_that_never_waits_for_the_peer_lets_others_run() -> None:
    async with pair() as (one, other), trio.open_nursery() as nursery:
        mine, theirs = await both_ends(one, other)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(count)
        for _ in range(160):
            await mine.write(b"x")
        assert turns >= 5
        turns = 0
        while theirs.state.buffered < 160:
            await trio.lowlevel.checkpoint()
        turns = 0
        for _ in range(160):
            assert await theirs.read(1) == b"x"
        assert turns >= 5
        nursery.cancel_scope.cancel()


async def test_many_small_answers_to_one_packet_leave_in_one() -> None:
    near, far = await sockets()
    serving = native(near)

    async def answer(stream: NativeStream) -> None:
        with suppress(PeerError):  # at the end of the test
            while data := await stream.read(100):
                await stream.write(data)

    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(serving.run)
        ids = range(1, 41, 2)
        await far.send_all(b"".join(struct.pack(">BBHII", 0, 1, 1, n, 0) for n in ids))
        for _ in ids:
            nursery.start_soon(answer, await serving.accept())
        await trio.testing.wait_all_tasks_blocked()
        await far.receive_some()
        questions = b"".join(struct.pack(">BBHII", 0, 0, 0, n, 4) + b"ping" for n in ids)
        session = serving._session
        assert isinstance(session, InTheClear)
        session.sealed = 0
        await far.send_all(questions)
        await trio.testing.wait_all_tasks_blocked()
        assert session.sealed == 1
        got = await far.receive_some(100_000)
        assert sorted(got[at : at + 16] for at in range(0, len(got), 16)) == sorted(
            questions[at : at + 16] for at in range(0, len(questions), 16)
        )
        serving.close("the test is over")
        nursery.cancel_scope.cancel()


async def drain(far: trio.SocketStream, got: bytearray) -> None:
    with suppress(trio.BrokenResourceError):  # whoever lets go does not read what is under way
        while data := await far.receive_some():
            got += data


async def starve(connection: NativeConnection) -> None:
    stream = connection.open()
    with pytest.raises(PeerError, match="no credit"):
        await stream.write(bytes(300_000))


async def test_a_starved_write_given_up_after_the_stream_was_closed_sends_the_end() -> None:
    near, far = await sockets()
    one = native(near, initiator=True)
    end = struct.pack(">BBHII", 0, 1, 4, 1, 0)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        got = bytearray()
        nursery.start_soon(drain, far, got)
        stream = one.open()
        async with trio.open_nursery() as writers:
            writers.start_soon(stream.write, bytes(300_000))
            await trio.testing.wait_all_tasks_blocked()
            stream.close()
            assert not got.endswith(end)
            writers.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert got.endswith(end)
        one.close("the test is over")


async def test_a_lost_connection_fails_everything_that_waits() -> None:
    near, far = await sockets()
    one = native(near, initiator=True)
    failures: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)

        async def wait(stream: NativeStream, *, writing: bool) -> None:
            with pytest.raises(PeerError) as caught:
                await (stream.write(bytes(20 * MIB)) if writing else stream.read(1))
            failures.append(caught.value.message)

        for writing in (True, False):
            nursery.start_soon(lambda writing=writing: wait(one.open(), writing=writing))
        await trio.testing.wait_all_tasks_blocked()
        await far.aclose()
        with pytest.raises(PeerError, match="lost"):
            await one.accept()
    assert len(failures) == 2
    assert all("lost" in failure for failure in failures)
    with pytest.raises(PeerError, match="lost"):
        one.open()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (b"\x01" * 12, "bad_version"),
        (FORGED, "bad_noise_frame"),
        (struct.pack(">BBHII", 0, 1, 1, 1, 0) + struct.pack(">BBHII", 0, 0, 0, 1, 2**31),
         "window_overrun"),
        (b"".join(struct.pack(">BBHII", 0, 1, 1, 1 + 2 * n, 0) for n in range(9000)),
         "stream_flood"),
    ],
    ids=["version", "forged", "overrun", "flood"],
)  # fmt: skip
async def test_a_hostile_peer_is_disconnected_for_a_counted_reason(
    attack: bytes, reason: str
) -> None:
    near, far = await sockets()
    reasons: list[str] = []
    victim = native(near, reasons=reasons)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(victim.run)
        with trio.move_on_after(5):
            try:
                await far.send_all(attack)
                while await far.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
    assert reasons == [reason]
    assert victim.why_closed is not None


async def test_a_violation_is_answered_with_a_go_away() -> None:
    near, far = await sockets()
    victim = native(near)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(victim.run)
        await far.send_all(b"\x01" * 12)
        answer = b""
        while data := await far.receive_some():
            answer += data
    assert answer.endswith(struct.pack(">BBHII", 0, 3, 0, 0, 1))


async def test_a_peer_that_goes_away_is_let_go_when_its_last_stream_ends() -> None:
    near, far = await sockets()
    one = native(near, initiator=True)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        stream = one.open()
        await far.send_all(struct.pack(">BBHII", 0, 3, 0, 0, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert one.leaving
        assert one.why_closed is None
        stream.reset()
        assert one.why_closed == "the peer went away"


async def test_a_thousand_streams_one_after_another_leave_nothing_behind() -> None:
    async with pair() as (one, other):
        for _ in range(1000):
            mine, theirs = await both_ends(one, other)
            await send(mine, b"x")
            assert await read_all(theirs) == b"x"
            theirs.close()
            assert await read_all(mine) == b""
        for connection in (one, other):
            assert connection.streams == 0
            assert not connection._streams
            core = connection._core
            assert not core._over
            assert not core._peer_ids._skipped
            assert core.credit.left == YamuxLimits().budget


async def test_a_socket_closed_in_between_is_never_waited_for() -> None:
    near, far = await sockets()
    async with far:
        wire = NativeSocket(near)
        wire.close()
        wire.close()
        for _ in range(2):
            with pytest.raises(PeerError, match="closed here"):
                await wire.wait_readable()
            with pytest.raises(PeerError, match="closed here"):
                await wire.wait_writable(1)
