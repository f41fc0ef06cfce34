"""Notices: small sealed messages, kept for a recipient until they expire.

`[1, sender, recipient, created, expires, sealed, signature]` in canonical msgpack, kept under
`/meshnode/notice/` and a digest of the recipient. The DHT checks who signed, size and expiry; what
is inside only the recipient can open. One key holds many: it is asked for the bundle of them all,
`[1, [notice, ...]]`, and given one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blake3 import blake3

from ..errors import FormatError, UsageError
from .peer_id import PeerId
from .settings import MAX_VALUE_BYTES
from .signing import Signer, check_canonical, check_signature, pack, unpack_bounded

NOTICE_NAMESPACE = b"/meshnode/notice/"
MAX_SEALED_BYTES = 4096
MAX_NOTICE_LIFETIME = 14 * 86_400
MAX_NOTICES_PER_KEY = 64
MAX_BUNDLE_BYTES = 60 * 1024
"""Of all notices under one key: what is kept always fits into one answer."""

_MAX_TIME = 2**40
_MAX_NOTICE_BYTES = MAX_SEALED_BYTES + 512
_VERSION = 1
_DOMAIN = b"meshnode/notice/1\x00"
_KEY_DOMAIN = b"meshnode/notice-key/1\x00"


@dataclass(frozen=True, slots=True)
class Notice:
    """`sender` has left `sealed` for `recipient`; times are Unix seconds by the sender's clock.

    `encoded` is the notice as it travels, signature included.
    """

    sender: PeerId
    recipient: PeerId
    created: int
    expires: int
    sealed: bytes
    encoded: bytes

    @property
    def key(self) -> bytes:
        return notice_key(self.recipient)

    @property
    def id(self) -> bytes:
        """32 bytes that name this notice."""
        return blake3(self.encoded).digest()


def notice_key(recipient: PeerId) -> bytes:
    """Where the notices for `recipient` are kept."""
    return NOTICE_NAMESPACE + blake3(_KEY_DOMAIN + bytes(recipient)).digest()


def sign_notice(
    signer: Signer, recipient: PeerId, sealed: bytes, *, created: int, expires: int
) -> Notice:
    """A notice of `signer`'s own.

    Raises:
        UsageError: larger or longer-lived than any node would keep.
    """
    sender = signer.peer_id
    try:
        _check_bounds(created, expires, sealed)
    except FormatError as error:
        raise UsageError(error.message) from error
    signature = signer.sign(_statement(sender, recipient, created, expires, sealed))
    fields = [_VERSION, bytes(sender), bytes(recipient), created, expires, sealed, signature]
    return Notice(sender, recipient, created, expires, sealed, pack(fields))


def decode_notice(encoded: bytes) -> Notice:
    """Parse a notice and check its signature; not whether it has expired.

    Raises:
        FormatError: not a canonical notice within all bounds.
        IntegrityError: not signed by its sender.
    """
    match unpack_bounded(encoded, _MAX_NOTICE_BYTES, "A notice"):
        case [
            1,
            bytes(sender),
            bytes(recipient),
            int(created),
            int(expires),
            bytes(sealed),
            bytes(signature),
        ]:
            fields = [_VERSION, sender, recipient, created, expires, sealed, signature]
            check_canonical(encoded, fields, "A notice")
            source, target = PeerId.from_bytes(sender), PeerId.from_bytes(recipient)
            _check_bounds(created, expires, sealed)
            statement = _statement(source, target, created, expires, sealed)
            check_signature(source, statement, signature, "A notice")
            return Notice(source, target, created, expires, sealed, encoded)
    raise FormatError("Bytes are not a notice of a version we know.")


def encode_bundle(notices: Iterable[bytes]) -> bytes:
    """Encoded notices as the one value of their key."""
    return pack([_VERSION, list(notices)])


def decode_bundle(key: bytes, value: bytes) -> list[Notice]:
    """The notices in the value of `key`, each of them checked.

    Raises:
        FormatError: not a bundle, too many, or of another recipient.
        IntegrityError: one of them is forged.
    """
    match unpack_bounded(value, MAX_VALUE_BYTES, "A bundle of notices"):
        case [1, list(entries)] if len(entries) <= MAX_NOTICES_PER_KEY:
            check_canonical(value, [_VERSION, entries], "A bundle of notices")
            notices = [decode_notice(entry) for entry in entries if isinstance(entry, bytes)]
            if len(notices) == len(entries) and all(notice.key == key for notice in notices):
                return notices
    raise FormatError("Bytes are not a bundle of notices for this key.")


def _statement(
    sender: PeerId, recipient: PeerId, created: int, expires: int, sealed: bytes
) -> bytes:
    return _DOMAIN + pack([bytes(sender), bytes(recipient), created, expires, sealed])


def _check_bounds(created: int, expires: int, sealed: bytes) -> None:
    if not 0 < len(sealed) <= MAX_SEALED_BYTES:
        raise FormatError(f"A notice holds 1 to {MAX_SEALED_BYTES} bytes.")
    if not 0 <= created < expires <= min(created + MAX_NOTICE_LIFETIME, _MAX_TIME):
        raise FormatError(f"A notice lives for at most {MAX_NOTICE_LIFETIME} seconds.")
