"""`/ipfs/ping/1.0.0`: 32 bytes, and the same 32 bytes back.

Source: libp2p specifications, ping. Our own liveness needs none of it, Yamux has pings; others ask
it of any peer.
"""

from __future__ import annotations

import secrets
from typing import Final

import trio

from ...dht.host import Stream
from ...errors import PeerError
from .streams import BufferedStream

__all__ = ["PING_PROTOCOL", "ping", "serve_pings"]

PING_PROTOCOL: Final = "/ipfs/ping/1.0.0"
_SIZE: Final = 32
_IDLE: Final = 60.0
"""A stream without pings for so long is let go, as go-libp2p does."""


async def serve_pings(stream: Stream) -> None:
    """Answer pings, one at a time, until the peer ends the stream."""
    buffered = BufferedStream(stream)
    while True:
        with trio.move_on_after(_IDLE) as idle:
            if await buffered.at_end():
                return
            await buffered.write(await buffered.read_exactly(_SIZE))
        if idle.cancelled_caught:
            raise PeerError(f"Peer {stream.peer.short} left a stream for pings idle.")


async def ping(stream: Stream, *, timeout: float = 5.0) -> float:
    """One round trip on a fresh stream of the protocol; returns the seconds it took.

    Raises:
        PeerError: no answer in time, or not the same bytes.
    """
    buffered = BufferedStream(stream)
    sent = secrets.token_bytes(_SIZE)
    began = trio.current_time()
    with trio.move_on_after(timeout):
        await buffered.write(sent)
        answer = await buffered.read_exactly(_SIZE)
        taken = trio.current_time() - began
        if answer != sent:
            await buffered.reset()
            raise PeerError(f"Peer {stream.peer.short} answered a ping with other bytes.")
        await buffered.close()
        return taken
    raise PeerError(f"Peer {stream.peer.short} did not answer a ping within {timeout:g} s.")
