"""What libp2p nodes tell each other about themselves, as bytes.

Source: libp2p specifications, identify. One protobuf message:

    Identify { bytes publicKey = 1; repeated bytes listenAddrs = 2; repeated string protocols = 3;
               bytes observedAddr = 4; string protocolVersion = 5; string agentVersion = 6; }

All of it is the peer's own word: what comes in is bounded here, and what is odd is left out.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ...config.addresses import parse_address
from ...dht.peer_id import PeerId
from ...errors import FormatError
from .protobuf_fields import encode_field, read_fields
from .streams import encode_varint

MAX_IDENTIFY_BYTES: Final = 8192
"""One description, as go-libp2p bounds it; most have some hundred bytes."""
_MAX_ADDRESSES: Final = 32
_MAX_PROTOCOLS: Final = 256
_MAX_NAME: Final = 128
_MAX_ADDRESS_BYTES: Final = 256

_PUBLIC_KEY, _LISTEN, _PROTOCOL, _OBSERVED, _PROTOCOL_VERSION, _AGENT = 1, 2, 3, 4, 5, 6
_ED25519_KEY: Final = bytes.fromhex("08011220")  # PublicKey { Type = Ed25519; Data = 32 bytes }

# Codes of https://github.com/multiformats/multicodec; other transports are of no use here.
_IP_CODES: Final = {4: ("ip4", 4), 41: ("ip6", 16)}
_DNS_CODES: Final = {53: "dns", 54: "dns4", 55: "dns6"}
_TCP: Final = 6
_P2P: Final = encode_varint(421)
_CODES: Final = {"ip4": 4, "ip6": 41, "dns": 53, "dns4": 54, "dns6": 55}


@dataclass(frozen=True, slots=True)
class Description:
    """A peer in its own words. Nothing in it is proven but `peer`, and that by the connection."""

    peer: PeerId | None
    """Whose public key was sent; None when there was none, or of a kind not known here."""
    listen: tuple[str, ...] = ()
    """Multiaddrs, without `/p2p/...`, of kinds that can be dialled from here."""
    protocols: tuple[str, ...] = ()
    observed: str | None = None
    """Where the peer sees us."""
    agent: str = ""
    protocol_version: str = ""


def encode_description(description: Description) -> bytes:
    """The message, at most `MAX_IDENTIFY_BYTES` with what a host can have in it."""
    out = bytearray()
    key = description.peer.ed25519_public_key if description.peer else None
    if key is not None:
        out += encode_field(_PUBLIC_KEY, _ED25519_KEY + key)
    for address in description.listen[:_MAX_ADDRESSES]:
        out += encode_field(_LISTEN, pack_address(address))
    for name in description.protocols[:_MAX_PROTOCOLS]:
        out += encode_field(_PROTOCOL, name.encode())
    if description.observed is not None:
        out += encode_field(_OBSERVED, pack_address(description.observed))
    out += encode_field(_PROTOCOL_VERSION, description.protocol_version.encode())
    out += encode_field(_AGENT, description.agent.encode())
    return bytes(out)


def decode_description(data: bytes) -> Description:
    """Read a description; addresses and names that make no sense are left out, so is the excess.

    Raises:
        FormatError: not a protobuf message, or too long.
    """
    if len(data) > MAX_IDENTIFY_BYTES:
        raise FormatError(f"A description of {len(data)} bytes; at most {MAX_IDENTIFY_BYTES}.")
    peer: PeerId | None = None
    listen: dict[str, None] = {}
    protocols: dict[str, None] = {}
    observed: str | None = None
    texts = {_PROTOCOL_VERSION: "", _AGENT: ""}
    for number, value in read_fields(data):
        match number:
            case 1:
                peer = _peer_of(value)
            case 2 if len(listen) < _MAX_ADDRESSES and (address := unpack_address(value)):
                listen[address] = None
            case 3 if len(protocols) < _MAX_PROTOCOLS and (name := _name(value)):
                protocols[name] = None
            case 4:
                observed = unpack_address(value)
            case 5 | 6:
                texts[number] = _name(value)
    return Description(
        peer,
        tuple(listen),
        tuple(protocols),
        observed,
        agent=texts[_AGENT],
        protocol_version=texts[_PROTOCOL_VERSION],
    )


def _peer_of(public_key: bytes) -> PeerId | None:
    if len(public_key) != len(_ED25519_KEY) + 32 or not public_key.startswith(_ED25519_KEY):
        return None
    return PeerId.from_ed25519(public_key[len(_ED25519_KEY) :])


def _name(data: bytes) -> str:
    """A text that may be shown and logged; empty when it may not."""
    if len(data) > _MAX_NAME:
        return ""
    text = data.decode("utf-8", errors="replace")
    return text if text.isprintable() else ""


@lru_cache(maxsize=256)
def pack_address(text: str) -> bytes:
    """The bytes of a multiaddr that `parse_address` accepts, without its peer id."""
    address = parse_address(text)
    host = (
        ipaddress.ip_address(address.host).packed
        if address.is_numeric
        else encode_varint(len(address.host)) + address.host.encode("ascii")
    )
    port = address.port.to_bytes(2, "big")
    return encode_varint(_CODES[address.kind]) + host + encode_varint(_TCP) + port


def unpack_address(data: bytes) -> str | None:
    """The text of a multiaddr's bytes; None for all but TCP over an IP address or a DNS name.

    A peer id behind the port is left out; anything else there makes it another transport.
    """
    # All codes and lengths that count are below 128, one byte each.
    if not 4 <= len(data) <= _MAX_ADDRESS_BYTES:
        return None
    code, rest = data[0], data[1:]
    if code in _IP_CODES:
        kind, size = _IP_CODES[code]
        host = str(ipaddress.ip_address(rest[:size])) if len(rest) >= size else ""
    elif code in _DNS_CODES and rest[0] < 128:
        kind, size = _DNS_CODES[code], 1 + rest[0]
        host = rest[1:size].decode("ascii", errors="replace")
    else:
        return None
    rest = rest[size:]
    if len(rest) < 3 or rest[0] != _TCP or not _is_peer_id(rest[3:]):
        return None
    text = f"/{kind}/{host}/tcp/{int.from_bytes(rest[1:3], 'big')}"
    try:
        parse_address(text)
    except ValueError:
        return None
    return text


def _is_peer_id(data: bytes) -> bool:
    """Whether nothing follows the port, or a peer id and no more: a relay has more."""
    head = len(_P2P)
    return not data or (
        data.startswith(_P2P) and len(data) > head + 1 and len(data) == head + 1 + data[head]
    )
