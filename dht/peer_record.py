"""Peer records: where a member listens, in its own signed words.

A record says who, where and in which zone, and for how long that may be believed. Its sequence
number comes from the signer's clock and only grows, across restarts too, so that the newest record
wins wherever it is met. Nobody compares it with a clock of its own: clocks of members may differ,
and who signs a number from the future misleads about nobody but itself. The signature makes it
indifferent who passes a record on. The format is fixed for ever by a golden file.

It travels two ways: by gossip in a mesh with a full map, and as a value of the DHT under
`/meshnode/peer/` and a digest of the peer id in one that is too large for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from blake3 import blake3

from ..errors import FormatError
from .peer_id import PeerId
from .signing import Signer, check_canonical, check_signature, pack, unpack_bounded

PEER_NAMESPACE = b"/meshnode/peer/"
MAX_RECORD_BYTES = 1024
MAX_SEQ = 2**53 - 1
MAX_LIFETIME = 24 * 3600
_MIN_LIFETIME = 10
_MAX_ADDRESSES = 8
_MAX_ADDRESS_CHARS = 200
_MAX_ZONE_CHARS = 64
_MAX_REALM_BYTES = 64
_VERSION = 1
_LEAVING = 1
_DOMAIN = b"meshnode/peer-record/1\x00"
_KEY_DOMAIN = b"meshnode/peer-key/1\x00"


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What `peer` said of itself. `encoded` is the record as it travels, signature included.

    `lifetime` in seconds, from when the record was made; `leaving`: the peer said goodbye.
    """

    peer: PeerId
    seq: int
    lifetime: int
    leaving: bool
    addresses: tuple[str, ...]
    zone: str
    encoded: bytes

    @property
    def key(self) -> bytes:
        return peer_record_key(self.peer)

    def says_the_same_as(self, other: PeerRecord) -> bool:
        """Whether only sequence number and lifetime tell the two apart."""
        return (self.leaving, self.addresses, self.zone) == (
            other.leaving,
            other.addresses,
            other.zone,
        )


def peer_record_key(peer: PeerId) -> bytes:
    """Where the record of `peer` is kept."""
    return PEER_NAMESPACE + blake3(_KEY_DOMAIN + bytes(peer)).digest()


def sign_record(
    signer: Signer,
    seq: int,
    lifetime: int,
    addresses: Sequence[str],
    zone: str,
    *,
    leaving: bool = False,
    realm: bytes = b"",
) -> PeerRecord:
    """Our own record. Addresses that do not fit are left out, the last ones first.

    Args:
        realm: names the mesh; a record is void in any other. It is signed, and does not travel.

    Raises:
        ValueError: no address of a member that stays, or a number out of bounds.
    """
    fit = [text for text in addresses if _is_address(text)][:_MAX_ADDRESSES]
    while True:
        fields = _fields(signer.peer_id, seq, lifetime, leaving, fit, zone)
        signature = signer.sign(_statement(fields, realm))
        encoded = pack([*fields, signature])
        if len(encoded) <= MAX_RECORD_BYTES or not fit:
            break
        fit.pop()
    try:
        return decode_record(encoded, realm)
    except FormatError as error:
        raise ValueError(f"This cannot be said in a peer record: {error.message}") from error


@lru_cache(maxsize=2048)
def decode_record(data: bytes, realm: bytes = b"") -> PeerRecord:
    """Parse and verify a record.

    The same bytes come from many neighbours, and a signature takes a tenth of a millisecond:
    what was found sound is remembered.

    Raises:
        FormatError: not a record within all bounds, or not encoded the one way there is.
        IntegrityError: the signature is not the peer's, or of another mesh.
    """
    match unpack_bounded(data, MAX_RECORD_BYTES, "A peer record"):
        case [
            int(version),
            bytes(name),
            int(seq),
            int(lifetime),
            int(flags),
            list(addresses),
            str(zone),
            bytes(signature),
        ] if version == _VERSION and flags in (0, _LEAVING):
            leaving = flags == _LEAVING
        case _:
            raise FormatError("Bytes are not a peer record.")
    peer, texts = PeerId.from_bytes(name), [text for text in addresses if isinstance(text, str)]
    if len(texts) != len(addresses) or len(texts) > _MAX_ADDRESSES:
        raise FormatError("The addresses of a peer record are not a short list of texts.")
    if not all(map(_is_address, texts)) or not (texts or leaving):
        raise FormatError(f"The record of {peer.short} does not say where it listens.")
    if not 0 < seq <= MAX_SEQ or not _MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise FormatError(f"The record of {peer.short} has a number out of bounds.")
    if len(zone) > _MAX_ZONE_CHARS or not (zone.isprintable() or not zone):
        raise FormatError("A zone is a short printable word.")
    # int(): a boolean is an integer to Python, and encoded otherwise.
    fields = _fields(peer, int(seq), int(lifetime), leaving, texts, zone)
    what = f"The record of {peer.short}"
    check_canonical(data, [*fields, signature], what)
    check_signature(peer, _statement(fields, realm), signature, what)
    return PeerRecord(peer, seq, lifetime, leaving, tuple(texts), zone, data)


def _fields(
    peer: PeerId, seq: int, lifetime: int, leaving: bool, addresses: Iterable[str], zone: str
) -> list[object]:
    flags = _LEAVING if leaving else 0
    return [_VERSION, bytes(peer), seq, lifetime, flags, list(addresses), zone]


def _statement(fields: list[object], realm: bytes) -> bytes:
    """The bytes that are signed."""
    if len(realm) > _MAX_REALM_BYTES:
        raise ValueError("a realm has at most 64 bytes")
    return b"".join((_DOMAIN, bytes([len(realm)]), realm, pack(fields)))


def _is_address(text: str) -> bool:
    """Whether this could be a multiaddr; the host decides whether it can be dialled."""
    sane = 1 < len(text) <= _MAX_ADDRESS_CHARS and text.startswith("/")
    return sane and text.isascii() and text.isprintable() and " " not in text
