"""Reads into memory that the connection decrypts to, however the peer cuts its frames."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import trio
from meshnode.node.transport.native_connection import NativeConnection
from meshnode.node.transport.native_socket import NativeSocket
from meshnode.node.transport.native_stream import NativeStream
from meshnode.node.transport.noise_session import MAX_PLAINTEXT, NoiseSession
from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_budget import ReceiveBudget
from meshnode.node.transport.yamux_limits import YamuxLimits

from tests.unit.transport.native_in_the_clear import PEER, both_ends, pair, sockets
from tests.unit.transport.test_native_connection import cancel_soon
from tests.unit.transport.test_noise_session import sessions

LIMITS = YamuxLimits(window=1 << 20)


async def test_what_comes_once_a_reader_has_given_up_is_for_the_next_one() -> None:
    async with pair() as (one, other), trio.open_nursery() as nursery:
        mine, theirs = await both_ends(one, other)
        target = bytearray(100)
        scope = trio.CancelScope()

        async def read() -> None:
            with scope:
                await theirs.read_into(memoryview(target))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        mine.state.begin_write(b"hello")
        one.flush()
        scope.cancel()
        # In the same turn, as when the reader's task comes after that of the connection.
        other._receive()
        with trio.fail_after(5):
            assert await theirs.read(100) == b"hello"
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        assert target == bytes(100)


def cut(rng: random.Random, data: bytes, most: int) -> Iterator[bytes]:
    least = rng.choice((1, 1000, most))
    while data:
        size = rng.randint(least, most)
        yield data[:size]
        data = data[size:]


class Peer:
    """Sends `sent` on streams of its own, in Noise frames that end anywhere."""

    def __init__(
        self, rng: random.Random, wire: trio.SocketStream, session: NoiseSession, sent: list[bytes]
    ) -> None:
        self._rng, self._wire, self._session = rng, wire, session
        self._core = YamuxCore(initiator=True, limits=LIMITS)
        self._writes = [(self._core.open(), cut(rng, data, 400_000)) for data in sent]

    async def run(self) -> None:
        unopened = b""
        while True:
            for stream, pieces in self._writes:
                if stream.pending is None and not stream.fin_sent:
                    if piece := next(pieces, b""):
                        stream.begin_write(piece)
                    else:
                        stream.close()
            while wire := b"".join(self._core.take_outgoing(self._rng.choice((1, 1 << 18)))):
                frames = [b"".join(self._session.seal([p])) for p in cut(self._rng, wire, 65_519)]
                for piece in cut(self._rng, b"".join(frames), 4 * MAX_PLAINTEXT):
                    await self._wire.send_all(piece)
            if all(stream.finished for stream, _ in self._writes):
                return
            if any(stream.send_window and not stream.fin_sent for stream, _ in self._writes):
                await trio.lowlevel.checkpoint()
                continue
            received = await self._wire.receive_some(100_000)
            assert received, "the connection broke"
            unopened += received
            plaintexts, used = self._session.open(unopened)
            unopened = unopened[used:]
            self._core.receive(plaintexts)


class Reading:
    """Reads a stream to its end in every way, and gives many reads up."""

    def __init__(self, rng: random.Random) -> None:
        self.got = bytearray()
        self.lent: list[tuple[bytearray, bytes]] = []
        """Memory that was read into, and what was in it then."""
        self._rng = rng

    async def run(self, stream: NativeStream) -> None:
        data: bytes | None = None
        async with trio.open_nursery() as nursery:
            while data != b"":
                data = None
                with trio.CancelScope() as scope:
                    if self._rng.random() < 0.5:
                        nursery.start_soon(cancel_soon, scope, self._rng.randrange(4))
                    data = await self._read(stream)
                self.got += data or b""
        stream.close()

    async def _read(self, stream: NativeStream) -> bytes:
        size = self._rng.choice((1, 100, 5000, 66_000, 300_000))
        if self._rng.random() < 0.3:
            return await stream.read(size)
        target = bytearray(size)
        self.lent.append((target, bytes(size)))
        came = await stream.read_into(memoryview(target))
        self.lent[-1] = (target, bytes(target))
        assert not any(target[came:])
        return bytes(target[:came])


@pytest.mark.parametrize("seed", range(10))
async def test_however_frames_are_cut_and_reads_given_up_every_byte_comes_once(seed: int) -> None:
    rng = random.Random(seed)
    near, far = await sockets()
    theirs, ours = sessions()
    budget, broken = ReceiveBudget(), list[str]()
    connection = NativeConnection(
        PEER,
        NativeSocket(near),
        ours,
        initiator=False,
        stall_timeout=5,
        limits=LIMITS,
        budget=budget,
        violated=broken.append,
    )
    sent = [rng.randbytes(rng.choice((1, 5000, 700_000))) for _ in range(3)]
    readings = [Reading(random.Random(rng.random())) for _ in sent]
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(Peer(rng, far, theirs, sent).run)
            for reading in readings:
                tasks.start_soon(reading.run, await connection.accept())
        for data, reading in zip(sent, readings, strict=True):
            assert reading.got == data
            assert all(memory == before for memory, before in reading.lent)
        assert (broken, connection.streams, connection.buffered) == ([], 0, 0)
        assert (budget.unread, budget.holders) == (0, 0)
        assert connection._core.credit.left == LIMITS.budget
        connection.close("the test is over")
