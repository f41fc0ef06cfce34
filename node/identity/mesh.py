"""Which mesh a node belongs to: one shared secret, and everything derived from it.

All derivations are BLAKE3 `derive_key` (BLAKE3 paper, section 2.3 and 6.2) with a context of their
own, so that knowing one derived value tells nothing about another or about the secret. The id is
derived too: id and secret check each other, and no mesh can pose as another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from ...config.addresses import parse_address
from ...config.durable import create_file, read_private_file, replace_file
from ...errors import FormatError, MembershipError, RefusedError, UsageError

MESH_ID_BYTES = 16
SECRET_BYTES = 32
MAX_NAME_CHARS = 64
MAX_BOOTSTRAP = 64

_FORMAT = 1
_MAX_FILE_BYTES = 64 * 1024
_WHAT = "the mesh secret"

# Never change one of these: every mesh that exists hangs on them.
_ID_CONTEXT = "meshnode 2026-11-22 mesh id v1"
_OPEN_ID_CONTEXT = "meshnode 2026-11-22 open mesh id v1"
_MEMBERSHIP_CONTEXT = "meshnode 2026-11-22 membership key v1"
_OPEN_MEMBERSHIP_CONTEXT = "meshnode 2026-11-22 open membership key v1"
_CONVERGENCE_CONTEXT = "meshnode 2026-11-22 convergence secret v1"


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh as its members know it. Whoever has the secret is a member, for good.

    Raises:
        FormatError: on construction, for a field out of its bounds.
    """

    name: str
    """What people call it, 1 to 64 printable characters; not unique, not secret."""
    secret: bytes = field(repr=False)
    open: bool = False
    """Anyone who knows the id may take part; the id of an open mesh says so, see `id`."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs with `/p2p/...` of members to contact first."""

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise FormatError(f"A mesh name has 1 to {MAX_NAME_CHARS} printable characters.")
        if len(self.secret) != SECRET_BYTES:
            raise FormatError(f"A mesh secret has {SECRET_BYTES} bytes.")
        if len(self.bootstrap) > MAX_BOOTSTRAP:
            raise FormatError(f"A mesh has at most {MAX_BOOTSTRAP} bootstrap addresses.")
        for address in self.bootstrap:
            check_dialable(address)

    @classmethod
    def create(cls, name: str, open: bool = False) -> Mesh:
        """A new mesh with a secret of its own.

        Raises:
            UsageError: no usable name.
        """
        if not is_name(name):
            raise UsageError(
                f"{name[:80]!r} cannot be the name of a mesh.",
                hint=f"Use 1 to {MAX_NAME_CHARS} printable characters, no space at either end.",
            )
        return cls(name, os.urandom(SECRET_BYTES), open)

    @property
    def id(self) -> bytes:
        """16 bytes that name the mesh. Whether it is open is part of what they are made from."""
        context = _OPEN_ID_CONTEXT if self.open else _ID_CONTEXT
        return blake3(self.secret, derive_key_context=context).digest(length=MESH_ID_BYTES)

    @property
    def membership_key(self) -> bytes:
        """32 bytes that members prove to know (see handshake.py).

        In an open mesh it is made from the id, which is no secret: there the proof shows that both
        sides mean the same mesh, and nothing more.
        """
        if self.open:
            return blake3(self.id, derive_key_context=_OPEN_MEMBERSHIP_CONTEXT).digest()
        return blake3(self.secret, derive_key_context=_MEMBERSHIP_CONTEXT).digest()

    @property
    def convergence_secret(self) -> bytes:
        """32 bytes that the keys of chunks are derived from, so that members dedupe."""
        return blake3(self.secret, derive_key_context=_CONVERGENCE_CONTEXT).digest()

    def with_bootstrap(self, addresses: Sequence[str]) -> Mesh:
        """The same mesh with other bootstrap addresses."""
        return replace(self, bootstrap=tuple(dict.fromkeys(addresses)))

    @classmethod
    def load(cls, path: Path) -> Mesh:
        """Read mesh.json.

        Raises:
            MembershipError: there is none; this node belongs to no mesh.
            RefusedError: other users can read it.
            FormatError: damaged, or written by a newer meshnode.
            StoreError: it cannot be read.
        """
        data = read_private_file(path, max_bytes=_MAX_FILE_BYTES, what=_WHAT)
        if data is None:
            raise MembershipError(
                f"This node belongs to no mesh: {path} does not exist.",
                hint="Run `meshnode init` to make one, or `meshnode join TOKEN` to enter one.",
            )
        try:
            return _from_json(data)
        except FormatError as error:
            hint = error.hint or "Restore it from a backup, or join again with a new invitation."
            raise FormatError(f"{path} cannot be used: {error.message}", hint=hint) from error

    def save(self, path: Path) -> None:
        """Write mesh.json; only the file of this same mesh is ever replaced.

        Raises:
            RefusedError: the node belongs to another mesh already.
            FormatError, StoreError: what is there cannot be read, or the file cannot be written.
        """
        data = _to_json(self)
        if create_file(path, data):
            return
        present = Mesh.load(path)
        if present.id != self.id:
            raise RefusedError(
                f"This node belongs to the mesh {present.name!r} already ({path}).",
                hint="Use another --home for another mesh.",
            )
        replace_file(path, data)


def is_name(name: str) -> bool:
    """Whether `name` can be shown anywhere: short, printable, no space at either end."""
    return 0 < len(name) <= MAX_NAME_CHARS and name.isprintable() and name == name.strip()


def check_dialable(address: str) -> None:
    """Raise a `FormatError` unless `address` can be dialled and names the peer there."""
    try:
        parsed = parse_address(address)
    except ValueError as error:
        raise FormatError(f"{address[:80]!r} is not a usable address: {error}.") from error
    if parsed.peer is None or not parsed.is_dialable:
        raise FormatError(f"{address[:80]!r} does not lead to a peer.")


def _to_json(mesh: Mesh) -> bytes:
    fields = {
        "format": _FORMAT,
        "id": mesh.id.hex(),
        "name": mesh.name,
        "secret": mesh.secret.hex(),
        "open": mesh.open,
        "bootstrap": list(mesh.bootstrap),
    }
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _from_json(data: bytes) -> Mesh:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError("it is not JSON.") from error
    match found:
        case {
            "format": 1,
            "id": str(mesh_id),
            "name": str(name),
            "secret": str(secret),
            "open": bool(is_open),
            "bootstrap": list(bootstrap),
            **rest,
        } if not rest and all(isinstance(address, str) for address in bootstrap):
            mesh = Mesh(name, _from_hex(secret), is_open, tuple(bootstrap))
        case {"format": int(version)} if version > _FORMAT:
            raise FormatError(
                f"it has format {str(version)[:20]}, this meshnode knows up to {_FORMAT}.",
                hint="Install the newer meshnode that wrote it.",
            )
        case _:
            raise FormatError("it lacks a field, or has one of a wrong type.")
    if mesh.id.hex() != mesh_id:
        raise FormatError("id and secret do not belong together.")
    return mesh


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise FormatError("the secret is not hexadecimal.") from error
