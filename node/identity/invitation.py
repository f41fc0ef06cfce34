"""Invitations: one line of text that makes another machine a member of a mesh.

    meshnode-invite:<base64url of: canonical msgpack | 8 bytes of its BLAKE3>

The checksum comes first in checking: a token that was cut or mistyped is told as such, before any
of it is believed. The token holds the mesh secret. Its expiry is kept by honest software that is
given the token late; it is no defence against somebody who has read it in time.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from blake3 import blake3

from ...errors import FormatError, LinkError, MembershipError
from .mesh import Mesh
from .strict_msgpack import Plain, pack, unpack

PREFIX = "meshnode-invite:"
MAX_ADDRESSES = 16
MAX_TOKEN_CHARS = 8192

_VERSION = 1
_CHECKSUM_BYTES = 8
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last that datetime can show
_ASK_AGAIN = "Ask a member for a new one: meshnode invite"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a new member needs. `str()` gives the token; it is a secret.

    Raises:
        FormatError: on construction, for an address that cannot be dialled or an impossible time.
    """

    mesh: Mesh
    """Its `bootstrap` becomes `addresses`: what the new member is to save."""
    addresses: Sequence[str]
    """Multiaddrs with `/p2p/...` to contact first; the first `MAX_ADDRESSES` are kept."""
    expires: int
    """Unix time in seconds."""

    def __post_init__(self) -> None:
        kept = tuple(dict.fromkeys(self.addresses))[:MAX_ADDRESSES]
        object.__setattr__(self, "addresses", kept)
        object.__setattr__(self, "mesh", self.mesh.with_bootstrap(kept))
        if not 0 < self.expires <= _LAST_SECOND:
            raise FormatError("The expiry of an invitation is not a believable time.")

    def __str__(self) -> str:
        mesh = self.mesh
        fields: Plain = [
            _VERSION,
            mesh.id,
            mesh.name,
            mesh.secret,
            mesh.open,
            list(self.addresses),
            self.expires,
        ]
        payload = pack(fields)
        raw = payload + _checksum(payload)
        return PREFIX + _text(raw)

    @classmethod
    def parse(cls, text: str, *, now: float | None = None) -> Invitation:
        """Read a token. White space anywhere in it, as wrapped lines leave it, is ignored.

        Args:
            now: Unix time to compare the expiry with; the clock's by default.

        Raises:
            LinkError: no token, cut, mistyped, or of a newer version.
            MembershipError: expired.
        """
        invitation = _from_fields(_fields(_payload(text)))
        if invitation.expires <= (time.time() if now is None else now):
            moment = datetime.fromtimestamp(invitation.expires, UTC)
            raise MembershipError(
                f"This invitation to the mesh {invitation.mesh.name!r} expired on "
                f"{moment:%Y-%m-%d at %H:%M} UTC.",
                hint=_ASK_AGAIN + ". If it is fresh, check this machine's clock.",
            )
        return invitation


def _payload(text: str) -> bytes:
    """The msgpack of a token whose checksum is right."""
    token = "".join(text.split()) if len(text) <= 2 * MAX_TOKEN_CHARS else text
    if len(token) > MAX_TOKEN_CHARS:
        raise LinkError("This is far too long to be an invitation.", hint=_ASK_AGAIN)
    if not token.startswith(PREFIX):
        raise LinkError(
            f"This is not an invitation: one starts with {PREFIX}.",
            hint="Copy the whole line that `meshnode invite` printed.",
        )
    body = token.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    # Base64 has several spellings of some bytes; only the one that was printed is right.
    if _text(raw) != body or not hmac.compare_digest(checksum, _checksum(payload)):
        raise LinkError(
            "This invitation is incomplete or mistyped: its checksum is wrong.",
            hint="Copy the whole line that `meshnode invite` printed.",
        )
    return payload


def _fields(payload: bytes) -> list[Plain]:
    try:
        fields = unpack(payload, max_bytes=MAX_TOKEN_CHARS, what="The invitation")
    except FormatError as error:
        raise LinkError(error.message, hint=_ASK_AGAIN) from error
    if not isinstance(fields, list) or not fields:
        raise LinkError("This invitation holds nothing.", hint=_ASK_AGAIN)
    version = fields[0]
    if type(version) is int and version > _VERSION:
        raise LinkError(
            f"This invitation has version {version}; this meshnode knows version {_VERSION}.",
            hint="Install the meshnode version of the member that made it.",
        )
    if type(version) is not int or version != _VERSION or pack(fields) != payload:
        raise LinkError("This invitation is malformed.", hint=_ASK_AGAIN)
    return fields[1:]


def _from_fields(fields: list[Plain]) -> Invitation:
    try:
        match fields:
            case [
                bytes(mesh_id),
                str(name),
                bytes(secret),
                bool(is_open),
                list(addresses),
                int(expires),
            ] if len(addresses) <= MAX_ADDRESSES and not isinstance(expires, bool):
                texts = [address for address in addresses if isinstance(address, str)]
                mesh = Mesh(name, secret, is_open)
                if len(texts) == len(addresses) and mesh.id == mesh_id:
                    return Invitation(mesh, texts, expires)
    except FormatError as error:
        raise LinkError(
            f"This invitation is malformed: {error.message}", hint=_ASK_AGAIN
        ) from error
    raise LinkError("This invitation is malformed.", hint=_ASK_AGAIN)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _checksum(payload: bytes) -> bytes:
    return blake3(payload).digest(length=_CHECKSUM_BYTES)
