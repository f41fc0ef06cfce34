"""The seam between meshnode and the network: a `Host` opens and accepts authenticated streams.

Everything above (DHT, exchange, node) uses only this. Implementations live in `node/transport`:
`Libp2pHost` on real sockets, `SimHost` in memory on a virtual clock, `MemberHost` (a wrapper that
serves nobody but proven members).

Failure is always one of two errors: `PeerError` (this peer, now) or, for a peer outside the mesh,
`MembershipError`. Waiting is bounded by the host for dialling and negotiation; callers bound
everything else with a cancel scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from .peer_id import PeerId

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """An ordered, reliable, authenticated byte stream to one peer.

    Cancelling a read or a write makes the stream unusable (it is reset), never the connection.
    """

    @property
    def peer(self) -> PeerId: ...
    @property
    def protocol(self) -> str: ...

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        """Between 1 and `max_bytes` bytes; `b""` at the end of the stream.

        The end of a stream proves nothing (a broken connection may look the same): protocols
        carry lengths and digests.

        Raises:
            PeerError: the stream was reset or the connection lost.
        """
        ...

    async def write(self, data: Buffer) -> None:
        """Hand over all of `data`; it may be reused when this returns.

        Raises:
            PeerError: reset, connection lost, or the peer took nothing for the stall deadline.
        """
        ...

    async def close(self) -> None:
        """Say that nothing more will be written, and let go of the stream. Never raises."""
        ...

    async def reset(self) -> None:
        """Drop the stream in both directions at once. Never raises, never blocks for long."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. An error it raises resets that stream and is logged; no more."""


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """A peer became reachable over a live connection, or lost its last one."""

    peer: PeerId
    connected: bool


class Host(Protocol):
    """Who we are on the network, whom we know, and streams to them."""

    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> list[str]:
        """Our own dialable addresses as multiaddrs without `/p2p/...`."""
        ...

    def known_addresses(self, peer: PeerId) -> list[str]:
        """Multiaddrs at which `peer` was said or seen to listen; empty when unknown."""
        ...

    def add_addresses(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember multiaddrs for `peer`; nonsense and our own id are ignored, count is bounded."""
        ...

    def connected_peers(self) -> frozenset[PeerId]:
        """Peers with a live connection now (for `MemberHost`: proven members only)."""
        ...

    async def connect(self, peer: PeerId) -> None:
        """Make sure a connection to `peer` is up; concurrent calls share one dial.

        Raises:
            PeerError: no known address answered within the dial deadline, or still in back-off.
            MembershipError: the peer is not in our mesh.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to `peer`. Never raises."""
        ...

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """Open a new stream, connecting first if need be. Prefer `streams.StreamPool`.

        Raises:
            PeerError: unreachable, or does not speak `protocol`.
            MembershipError: the peer is not in our mesh.
        """
        ...

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve inbound streams of `protocol`; each runs in a task the host owns."""
        ...

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ConnectionEvent]]:
        """Subscribe to connection events; a subscriber that lags loses the oldest ones."""
        ...
