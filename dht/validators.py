"""What may be stored and returned under each namespace of keys: nothing that is not checked here.

A key is a namespace and 32 bytes. Manifests are named by the digest of their bytes; signed values
prove who made them, and the newest one wins. A peer record is void in any mesh but its own.
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
from .peer_record import MAX_LIFETIME, PEER_NAMESPACE, decode_record
from .settings import MAX_VALUE_BYTES

_CLOCKS_DIFFER = 3600.0
_NAMESPACES = frozenset((MANIFEST_NAMESPACE, NAME_NAMESPACE, NOTICE_NAMESPACE, PEER_NAMESPACE))


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
    if namespace not in _NAMESPACES:
        raise FormatError(f"The key {key[:40].hex()} is of no namespace that is kept here.")
    return namespace


class Validators:
    """What is sound in one mesh, for every namespace with single values.

    Args:
        realm: names the mesh; peer records signed for another are void.
    """

    def __init__(self, realm: bytes = b"") -> None:
        self._realm = realm
        self._checks: dict[bytes, _Check] = {
            MANIFEST_NAMESPACE: _check_manifest,
            NAME_NAMESPACE: _check_name,
            PEER_NAMESPACE: self._check_peer_record,
        }

    def check(self, key: bytes, value: bytes, now: float) -> Checked:
        """Check a value against its key.

        Raises:
            FormatError: a namespace without single values, or nothing like a value of this one.
            IntegrityError: forged, or of another key or mesh.
            RefusedError: sound, but too large, expired, or too long-lived.
        """
        if len(value) > MAX_VALUE_BYTES:
            raise RefusedError(
                f"A value of {len(value)} bytes; the DHT keeps at most {MAX_VALUE_BYTES}.",
                hint="Store it as chunks and name those in a smaller one.",
            )
        check = self._checks.get(key[:-DIGEST_BYTES])
        if check is None:
            raise FormatError(f"The key {key[:40].hex()} is of no namespace with single values.")
        return check(key, value, now)

    def _check_peer_record(self, key: bytes, value: bytes, now: float) -> Checked:
        record = decode_record(value, self._realm)
        if record.key != key:
            raise IntegrityError(f"A record of {record.peer.short} under the key of another peer.")
        # A clock that is ahead misleads about nobody but its owner, whose record must not be lost
        # for that: it counts as signed now. One that is behind is borne with for an hour.
        signed = min(record.seq / 1000 + _CLOCKS_DIFFER, now)
        expires = signed + record.lifetime
        check_lifetime(expires, MAX_LIFETIME, now, f"The record of {record.peer.short}")
        return Checked(record.peer, (record.seq, value), expires)


def check_lifetime(expires: float, longest: float, now: float, what: str) -> None:
    """Check that something sound is still valid, and not for longer than is kept.

    Raises:
        RefusedError: it is not; clocks that differ by an hour are borne with.
    """
    if expires <= now:
        raise RefusedError(f"{what} has expired.")
    if expires > now + longest + _CLOCKS_DIFFER:
        raise RefusedError(f"{what} wants to live for more than {longest:.0f} s.")


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
