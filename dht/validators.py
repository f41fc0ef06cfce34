"""What may be stored and returned under each namespace of keys: nothing that is not checked here.

A key is a namespace and 32 bytes. Manifests are named by the digest of their bytes; signed values
prove who made them, and the newest one wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from blake3 import blake3

from ..errors import FormatError, IntegrityError, RefusedError
from .keyspace import DIGEST_BYTES, MANIFEST_NAMESPACE
from .names import MAX_NAME_LIFETIME, NAME_NAMESPACE, decode_name
from .notices import NOTICE_NAMESPACE
from .peer_id import PeerId
from .settings import MAX_VALUE_BYTES

_CLOCKS_DIFFER = 3600.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What a sound value says of itself. Of two values of one key the higher `rank` is valid.

    `signer` None: its key alone vouches for it. `expires` is Unix time, infinite when the value
    does not say.
    """

    signer: PeerId | None
    rank: tuple[int, bytes]
    expires: float


_Check = Callable[[bytes, bytes, float], Checked]


def namespace_of(key: bytes) -> bytes:
    """The part of `key` before its 32 bytes.

    Raises:
        FormatError: not a key of any namespace we keep.
    """
    namespace = key[:-DIGEST_BYTES]
    if namespace not in _CHECKS and namespace != NOTICE_NAMESPACE:
        raise FormatError(f"The key {key[:40].hex()} is of no namespace that is kept here.")
    return namespace


def check_value(key: bytes, value: bytes, now: float) -> Checked:
    """Check a value against its key.

    Raises:
        FormatError: a namespace without single values, or nothing like a value of this one.
        IntegrityError: forged, or of another key.
        RefusedError: sound, but too large, expired, or too long-lived.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise RefusedError(
            f"A value of {len(value)} bytes; the DHT keeps at most {MAX_VALUE_BYTES}.",
            hint="Store it as chunks and name those in a smaller one.",
        )
    check = _CHECKS.get(key[:-DIGEST_BYTES])
    if check is None:
        raise FormatError(f"The key {key[:40].hex()} is of no namespace with single values.")
    return check(key, value, now)


def check_lifetime(expires: float, longest: float, now: float, what: str) -> None:
    """Check that something sound is still valid, and not for longer than is kept.

    Raises:
        RefusedError: it is not; clocks that differ by an hour are borne with.
    """
    if expires <= now:
        raise RefusedError(f"{what} has expired.")
    if expires > now + longest + _CLOCKS_DIFFER:
        raise RefusedError(f"{what} wants to live for more than {longest:.0f} s.")


def check_manifest(digest: bytes, value: bytes) -> None:
    """Check that `value` is what `digest` names.

    Raises:
        RefusedError: larger than the DHT keeps.
        IntegrityError: other bytes.
    """
    check_value(MANIFEST_NAMESPACE + digest, value, 0.0)


def _check_manifest(key: bytes, value: bytes, now: float) -> Checked:
    digest = key[-DIGEST_BYTES:]
    if blake3(value).digest() != digest:
        raise IntegrityError(f"{len(value)} bytes are not the manifest {digest.hex()[:16]}...")
    return Checked(None, (0, b""), inf)


def _check_name(key: bytes, value: bytes, now: float) -> Checked:
    record = decode_name(value)
    if record.key != key:
        raise IntegrityError(f"A record of {record.publisher.short} under the key of another name.")
    check_lifetime(record.expires, MAX_NAME_LIFETIME, now, f"The name {record.name!r}")
    return Checked(record.publisher, (record.sequence, value), record.expires)


_CHECKS: dict[bytes, _Check] = {
    MANIFEST_NAMESPACE: _check_manifest,
    NAME_NAMESPACE: _check_name,
}
