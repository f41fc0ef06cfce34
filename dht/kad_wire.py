"""Messages of `/ipfs/kad/1.0.0` (libp2p kad-dht specification), as plain data.

The protobuf schema is the network library's; what comes in is bounded and checked here, so that
nothing above sees a protobuf.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.message import DecodeError
from libp2p.kad_dht.pb import kademlia_pb2 as pb
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ..errors import FormatError
from .peer_id import PeerId
from .settings import MAX_KAD_FRAME, MAX_VALUE_BYTES

MAX_PEERS_PER_MESSAGE = 64
MAX_ADDRESSES_PER_PEER = 8
MAX_KEY_BYTES = 128
_MAX_ADDRESS_BYTES = 256


class Kind(IntEnum):
    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True)
class PeerAddresses:
    """A peer and the multiaddrs (text, without `/p2p/...`) where it is said to listen."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KadMessage:
    """One request or answer. `value` travels as a record under `key`."""

    kind: Kind
    key: bytes = b""
    value: bytes | None = None
    closer: tuple[PeerAddresses, ...] = ()
    providers: tuple[PeerAddresses, ...] = ()


def encode_message(message: KadMessage) -> bytes:
    out = pb.Message(type=message.kind.name, key=message.key)
    if message.value is not None:
        out.record.key = message.key
        out.record.value = message.value
    _add_peers(out.closerPeers, message.closer)
    _add_peers(out.providerPeers, message.providers)
    return out.SerializeToString()


def decode_message(data: bytes) -> KadMessage:
    """Parse and check one message.

    Peers beyond `MAX_PEERS_PER_MESSAGE` and addresses that are not multiaddrs are dropped: other
    implementations know kinds of both that we do not.

    Raises:
        FormatError: not this protobuf, an unknown type, a key or value out of bounds, or a record
            under another key than the message's.
    """
    if len(data) > MAX_KAD_FRAME:
        raise FormatError(f"A DHT message of {len(data)} bytes; at most {MAX_KAD_FRAME}.")
    parsed = pb.Message()
    try:
        parsed.ParseFromString(data)
        kind = Kind(parsed.type)
    except (DecodeError, ValueError) as error:
        raise FormatError("Bytes are not a DHT message.") from error
    if len(parsed.key) > MAX_KEY_BYTES:
        raise FormatError(f"A DHT key of {len(parsed.key)} bytes; at most {MAX_KEY_BYTES}.")
    value = None
    if parsed.HasField("record"):
        value = parsed.record.value
        if parsed.record.key != parsed.key:
            raise FormatError("A DHT record under another key than its message's.")
        if len(value) > MAX_VALUE_BYTES:
            raise FormatError(f"A DHT value of {len(value)} bytes; at most {MAX_VALUE_BYTES}.")
    return KadMessage(
        kind, parsed.key, value, _peers(parsed.closerPeers), _peers(parsed.providerPeers)
    )


def _add_peers(
    out: RepeatedCompositeFieldContainer[pb.Message.Peer], peers: Sequence[PeerAddresses]
) -> None:
    for entry in peers[:MAX_PEERS_PER_MESSAGE]:
        packed = (_packed(text) for text in entry.addresses[:MAX_ADDRESSES_PER_PEER])
        out.add(id=bytes(entry.peer), addrs=[data for data in packed if data])


def _peers(found: Iterable[pb.Message.Peer]) -> tuple[PeerAddresses, ...]:
    out: dict[PeerId, PeerAddresses] = {}
    for entry, _ in zip(found, range(MAX_PEERS_PER_MESSAGE), strict=False):
        try:
            peer = PeerId.from_bytes(entry.id)
        except FormatError:
            continue
        texts = (_text(data) for data in entry.addrs[:MAX_ADDRESSES_PER_PEER])
        out[peer] = PeerAddresses(peer, tuple(text for text in texts if text))
    return tuple(out.values())


@lru_cache(maxsize=8192)
def _packed(text: str) -> bytes:
    """A multiaddr's bytes, empty when `text` is none."""
    try:
        return bytes(Multiaddr(text).to_bytes())
    except (ValueError, MultiaddrError):
        return b""


def _text(data: bytes) -> str:
    """A multiaddr's text, empty when `data` is none."""
    return _parsed(data) if len(data) <= _MAX_ADDRESS_BYTES else ""


@lru_cache(maxsize=8192)
def _parsed(data: bytes) -> str:
    try:
        return str(Multiaddr(data))
    except (ValueError, MultiaddrError):
        return ""
