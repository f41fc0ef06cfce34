"""A peer that shakes hands as anybody may, and then sends what it likes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import trio
from meshnode.dht.host import Buffer
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_upgrade import Upgrader
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.native_socket import NativeSocket
from meshnode.node.transport.noise_session import NoiseSession
from meshnode.node.transport.yamux_frames import DATA, SYN, frame

from .conftest import KeyOnly

IDENTITY = KeyOnly(bytes(31) + b"\xee")
HEADER = b"\x13/multistream/1.0.0\n"


async def dial(port: int, *, receive_buffer: int | None = None) -> trio.SocketStream:
    """A bare connection to a port of this machine."""
    found = trio.socket.socket()
    if receive_buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await found.connect(("127.0.0.1", port))
    return trio.SocketStream(found)


class Attacker:
    """Sends what it likes, and reads nothing by itself."""

    def __init__(self, wire: NativeSocket, session: NoiseSession) -> None:
        self.wire = wire
        self._session = session

    async def send(self, *frames: bytes) -> None:
        sealed: Sequence[Buffer] = self._session.seal(frames)
        for piece in sealed:
            await self.wire.send_all(piece, 10.0)

    async def drain(self) -> None:
        """Take bytes off the wire without a look at them."""
        buffer = memoryview(bytearray(65536))
        with suppress(PeerError):
            while await self.wire.receive_into(buffer):
                pass

    async def request(self, stream: int, protocol: str) -> None:
        proposal = HEADER + bytes([len(protocol) + 1]) + protocol.encode() + b"\n"
        await self.send(frame(DATA, SYN, stream, len(proposal)) + proposal)


async def attack(port: int, victim: PeerId, *, receive_buffer: int | None = None) -> Attacker:
    """Connect and prove to be `IDENTITY`. The caller closes the wire."""
    wire = NativeSocket(await dial(port, receive_buffer=receive_buffer))
    upgrader = Upgrader(IDENTITY, HostLimits(), lambda reason: None)
    connection = await upgrader.upgrade(wire, victim)
    session = connection._session
    assert isinstance(session, NoiseSession)
    return Attacker(wire, session)
