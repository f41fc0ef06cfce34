"""Names: small signed values that their publisher can replace.

`[1, publisher, name, sequence, expires, value, signature]` in canonical msgpack, kept under
`/meshnode/name/` and a digest of publisher and name. The record with the highest sequence number
is the valid one; an empty value says that the name is no longer in use. The signature makes it
indifferent who passes a record on.
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from ..errors import FormatError, UsageError
from .peer_id import PeerId
from .signing import Signer, check_canonical, check_signature, pack, unpack_bounded

NAME_NAMESPACE = b"/meshnode/name/"
MAX_NAME_BYTES = 128
MAX_NAME_VALUE_BYTES = 1024
MAX_NAME_LIFETIME = 30 * 86_400
MAX_SEQUENCE = 2**53 - 1
_MAX_TIME = 2**40
_MAX_RECORD_BYTES = 2048
_VERSION = 1
_DOMAIN = b"meshnode/name/1\x00"
_KEY_DOMAIN = b"meshnode/name-key/1\x00"


@dataclass(frozen=True, slots=True)
class NameRecord:
    """`publisher` says that `name` stands for `value` until `expires` (Unix seconds).

    `encoded` is the record as it travels, signature included.
    """

    publisher: PeerId
    name: str
    sequence: int
    expires: int
    value: bytes
    encoded: bytes

    @property
    def withdrawn(self) -> bool:
        """Whether the publisher no longer uses the name."""
        return not self.value

    @property
    def key(self) -> bytes:
        return name_key(self.publisher, self.name)


def name_key(publisher: PeerId, name: str) -> bytes:
    """Where the records of a publisher's name are kept."""
    text = name.encode()
    framed = bytes([len(publisher)]) + bytes(publisher) + text
    return NAME_NAMESPACE + blake3(_KEY_DOMAIN + framed).digest()


def sign_name(
    signer: Signer, name: str, value: bytes, *, sequence: int, expires: int
) -> NameRecord:
    """A record of `signer`'s own.

    Raises:
        UsageError: a name, value or number that no node would keep.
    """
    publisher = signer.peer_id
    try:
        _check_bounds(name, sequence, expires, value)
    except FormatError as error:
        raise UsageError(error.message) from error
    signature = signer.sign(_statement(publisher, name, sequence, expires, value))
    fields = [_VERSION, bytes(publisher), name, sequence, expires, value, signature]
    return NameRecord(publisher, name, sequence, expires, value, pack(fields))


def decode_name(encoded: bytes) -> NameRecord:
    """Parse a record and check its signature; not whether it has expired.

    Raises:
        FormatError: not a canonical record within all bounds.
        IntegrityError: not signed by its publisher.
    """
    match unpack_bounded(encoded, _MAX_RECORD_BYTES, "A name record"):
        case [
            1,
            bytes(publisher),
            str(name),
            int(sequence),
            int(expires),
            bytes(value),
            bytes(signature),
        ]:
            peer = PeerId.from_bytes(publisher)
            fields = [_VERSION, publisher, name, sequence, expires, value, signature]
            check_canonical(encoded, fields, "A name record")
            _check_bounds(name, sequence, expires, value)
            statement = _statement(peer, name, sequence, expires, value)
            check_signature(peer, statement, signature, "A name record")
            return NameRecord(peer, name, sequence, expires, value, encoded)
    raise FormatError("Bytes are not a name record of a version we know.")


def _statement(publisher: PeerId, name: str, sequence: int, expires: int, value: bytes) -> bytes:
    return _DOMAIN + pack([bytes(publisher), name, sequence, expires, value])


def _check_bounds(name: str, sequence: int, expires: int, value: bytes) -> None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise FormatError("A name is not text that can be encoded.") from error
    if not 0 < length <= MAX_NAME_BYTES or not name.isprintable():
        raise FormatError(f"A name is printable text of 1 to {MAX_NAME_BYTES} bytes.")
    if len(value) > MAX_NAME_VALUE_BYTES:
        raise FormatError(
            f"The value of a name has {len(value)} bytes; at most {MAX_NAME_VALUE_BYTES}."
        )
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise FormatError("The sequence number of a name is out of bounds.")
    if not 0 <= expires <= _MAX_TIME:
        raise FormatError("The end of a name's life is out of bounds.")
