"""Connections over socket pairs, without encryption."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from meshnode.dht.host import Buffer
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.native_connection import NativeConnection
from meshnode.node.transport.native_socket import NativeSocket
from meshnode.node.transport.native_stream import NativeStream
from meshnode.node.transport.noise_session import Reader
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

    def open_to(self, reader: Reader, received: memoryview) -> int:
        if received[: len(FORGED)] == FORGED:
            raise PeerError("it is forged")
        reader.take(bytes(received))
        return len(received)


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
