"""Reads and writes over the tasks of a connection."""

from __future__ import annotations

import random
from contextlib import suppress

import trio
from meshnode.errors import PeerError
from meshnode.node.transport.native_stream import NativeStream

from tests.unit.transport.native_in_the_clear import (
    MIB,
    InTheClear,
    both_ends,
    native,
    pair,
    read_all,
    send,
    sockets,
)
from tests.unit.transport.yamux_by_hand import SYN, WINDOW, data, frame


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
        await far.send_all(b"".join(frame(WINDOW, SYN, n, 0) for n in ids))
        for _ in ids:
            nursery.start_soon(answer, await serving.accept())
        await trio.testing.wait_all_tasks_blocked()
        await far.receive_some()
        questions = b"".join(data(n, b"ping") for n in ids)
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
