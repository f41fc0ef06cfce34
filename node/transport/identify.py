"""`/ipfs/id/1.0.0` and its push: who a peer is, where it listens, what it speaks.

Source: libp2p specifications, identify. Other implementations ask it on every connection and use a
peer for nothing (js-libp2p's Kademlia: keep it in no table) before it has answered.

Whom we answer is for the host to decide. What we are told are hints: a claimed public key must be
that of the connection, addresses go to the address book like any hearsay, the rest is for the eye.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog
import trio

from ... import __version__
from ...dht.host import Stream
from ...dht.peer_id import PeerId
from ...errors import FormatError, PeerError
from .identify_wire import (
    MAX_IDENTIFY_BYTES,
    Description,
    decode_description,
    encode_description,
)
from .streams import BufferedStream

__all__ = ["IDENTIFY_PROTOCOL", "PUSH_PROTOCOL", "Description", "Identify"]

IDENTIFY_PROTOCOL: Final = "/ipfs/id/1.0.0"
PUSH_PROTOCOL: Final = "/ipfs/id/push/1.0.0"
AGENT: Final = f"meshnode/{__version__}"
PROTOCOL_VERSION: Final = "ipfs/0.1.0"

_WITHIN: Final = 5.0
_MAX_PARTS: Final = 10
"""go-libp2p sends a description in up to ten messages, to be merged."""
_SETTLE: Final = 0.1
"""Seconds from a change to its push: programs install their handlers one after the other."""

_log = structlog.get_logger(__name__)

OpenStream = Callable[[str], Awaitable[Stream]]


class _Host(Protocol):
    @property
    def peer_id(self) -> PeerId: ...
    def addresses(self) -> list[str]: ...
    def add_addresses(self, peer: PeerId, addresses: Sequence[str]) -> None: ...
    def connected_peers(self) -> frozenset[PeerId]: ...
    def protocols_for(self, peer: PeerId) -> tuple[str, ...]: ...
    def observed_address(self, peer: PeerId) -> str | None: ...
    async def open_stream(self, peer: PeerId, protocol: str) -> Stream: ...


class Identify:
    """Describes one host to its peers, and asks them."""

    def __init__(self, host: _Host) -> None:
        self._host = host
        self._told: dict[PeerId, tuple[str, ...]] = {}
        self._changed = trio.Event()

    # --- what others learn --------------------------------------------------------------------

    async def serve(self, stream: Stream) -> None:
        """Answer a peer that asks."""
        await BufferedStream(stream).write_frame(self._description_for(stream.peer))

    def changed(self) -> None:
        """The host speaks other protocols than before: tell those who have asked."""
        self._changed.set()

    def forget(self, peer: PeerId) -> None:
        """The last connection to `peer` is gone."""
        self._told.pop(peer, None)

    async def keep_told(self) -> None:
        """Push what changes to peers that have asked, until cancelled."""
        while True:
            await self._changed.wait()
            await trio.sleep(_SETTLE)
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                for peer, told in list(self._told.items()):
                    if told != self._host.protocols_for(peer):
                        nursery.start_soon(self._push, peer)

    async def _push(self, peer: PeerId) -> None:
        with trio.move_on_after(_WITHIN):
            try:
                stream = BufferedStream(await self._host.open_stream(peer, PUSH_PROTOCOL))
                await stream.write_frame(self._description_for(peer))
                await stream.close()
            except PeerError as error:
                _log.debug("identify_push_failed", peer=str(peer), error=error.message)

    def _description_for(self, peer: PeerId) -> bytes:
        host = self._host
        protocols = host.protocols_for(peer)
        if peer in host.connected_peers():
            self._told[peer] = protocols
        return encode_description(
            Description(
                host.peer_id,
                tuple(host.addresses()),
                protocols,
                host.observed_address(peer),
                agent=AGENT,
                protocol_version=PROTOCOL_VERSION,
            )
        )

    # --- what we learn ------------------------------------------------------------------------

    async def ask(self, peer: PeerId, open_stream: OpenStream) -> Description:
        """Have `peer` describe itself, and remember where it says it listens.

        Raises:
            PeerError: it does not speak the protocol, answers nonsense, claims to be somebody else,
                or takes longer than 5 s.
        """
        with trio.move_on_after(_WITHIN):
            stream = BufferedStream(await open_stream(IDENTIFY_PROTOCOL))
            try:
                description = await _read(stream)
                self._learn(peer, description)
            except BaseException:
                await stream.reset()
                raise
            await stream.close()
            return description
        raise PeerError(f"Peer {peer.short} did not describe itself within {_WITHIN:g} s.")

    async def serve_push(self, stream: Stream) -> None:
        """Take in what a peer says of itself unasked."""
        with trio.move_on_after(_WITHIN):
            self._learn(stream.peer, await _read(BufferedStream(stream)))
            return
        raise PeerError(f"Peer {stream.peer.short} began to describe itself, and no more.")

    def _learn(self, peer: PeerId, description: Description) -> None:
        if description.peer is not None and description.peer != peer:
            raise PeerError(f"Peer {peer.short} claims the key of {description.peer.short}.")
        self._host.add_addresses(peer, description.listen)


async def _read(stream: BufferedStream) -> Description:
    received = bytearray()
    for _ in range(_MAX_PARTS):
        if received and await stream.at_end():
            break
        # The parts of a message, one behind the other, are the message: so protobuf defines it.
        received += await stream.read_frame(MAX_IDENTIFY_BYTES - len(received))
    try:
        return decode_description(bytes(received))
    except FormatError as error:
        raise PeerError(
            f"Peer {stream.peer.short} describes itself in a way nobody understands: "
            f"{error.message}."
        ) from error
