"""Streams come and go by the thousand on one connection, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from meshnode.node.identity import Identity
from meshnode.node.transport.native_connection import NativeConnection
from meshnode.node.transport.native_socket import NativeSocket
from meshnode.node.transport.noise import NoiseHandshake, NoiseSession
from meshnode.node.transport.yamux_budget import ReceiveBudget

CYCLES = 10_000
AT_ONCE = 20


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return near, await listener.accept()


def sessions() -> tuple[NoiseSession, NoiseSession]:
    ours, theirs = Identity.generate(), Identity.generate()
    one = NoiseHandshake(ours, initiator=True, expected=theirs.peer_id)
    other = NoiseHandshake(theirs, initiator=False, expected=None)
    while not (one.done and other.done):
        for sender, receiver in ((one, other), (other, one)):
            if data := sender.data_to_send():
                receiver.receive(data)
    return one.session(), other.session()


@asynccontextmanager
async def connected(
    budget: ReceiveBudget,
) -> AsyncIterator[tuple[NativeConnection, NativeConnection]]:
    ends = [
        NativeConnection(
            session.peer,
            NativeSocket(stream),
            session,
            initiator=initiator,
            stall_timeout=30,
            budget=budget,
        )
        for stream, session, initiator in zip(
            await tcp_pair(), sessions(), (True, False), strict=True
        )
    ]
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.run)
        yield ends[0], ends[1]
        for end in ends:
            end.close("the test is over")


def descriptors() -> int:
    folder = "/proc/self/fd"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def figures() -> tuple[int, int, int, int]:
    """Memory blocks, objects, tasks, descriptors."""
    gc.collect()
    tasks = trio.lowlevel.current_statistics().tasks_living
    return sys.getallocatedblocks(), len(gc.get_objects()), tasks, descriptors()


async def cycles(one: NativeConnection, other: NativeConnection, count: int) -> None:
    """Every way a stream can end, from either side."""
    for number in range(count // AT_ONCE):
        opener, server = (one, other) if number % 2 else (other, one)
        mine = [opener.open() for _ in range(AT_ONCE)]
        for stream in mine:
            await stream.write(b"question")
        theirs = [await server.accept() for _ in mine]
        for stream in theirs:
            assert await stream.read(100) == b"question"
            await stream.write(b"answer")
            stream.close()
        for stream in mine:
            assert await stream.read(100) == b"answer"
            assert await stream.read(100) == b""
            stream.close()
        mine[0].reset()  # of no effect: it is over
        again = opener.open()
        (again if number % 4 < 2 else await server.accept()).reset()
        if number % 4 < 2:
            await settled(lambda server=server: server.streams == 0)


async def settled(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


@pytest.mark.timeout(600)  # some seconds of work, and a minute when many share the machine
async def test_ten_thousand_streams_leave_no_memory_no_task_and_no_descriptor() -> None:
    budget = ReceiveBudget()
    async with connected(budget) as (one, other):

        def nothing_left() -> bool:
            return one.streams == other.streams == 0

        await cycles(one, other, 500)
        await settled(nothing_left)
        before = figures()
        await cycles(one, other, CYCLES)
        await settled(nothing_left)
        after = figures()
        assert after[2:] == before[2:]
        # Anything kept of each stream would be 10,000 at least. What stays of streams that were
        # reset is bounded, and here of 500.
        assert after[0] - before[0] < 3000
        assert after[1] - before[1] < 1000
        assert budget.left == ReceiveBudget().left
        assert (budget.unread, budget.holders) == (0, 0)
