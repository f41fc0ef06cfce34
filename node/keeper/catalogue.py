"""What was put on this node: one entry per link, kept until `rm`.

The entry holds the whole link, key included: the catalogue is as secret as the mesh secret beside
it, and lies in a database only its user can read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from ...errors import FormatError, NotFoundError
from ..content import Link

_VERSION = 1


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One put, as it was reported when it ended. Sizes in bytes, time in unix seconds."""

    link: Link
    name: str
    kind: str
    size: int
    chunks: int
    outcome: str
    copies: int
    put_at: float

    def to_json(self) -> dict[str, Any]:
        return {
            "link": str(self.link),
            "name": self.name,
            "kind": self.kind,
            "size": self.size,
            "chunks": self.chunks,
            "outcome": self.outcome,
            "copies": self.copies,
            "put_at": self.put_at,
        }

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb({"v": _VERSION, **self.to_json()})
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> CatalogueEntry:
        """Raises:
        FormatError: not an entry, or one of a newer version.
        """
        try:
            fields: Mapping[str, Any] = msgpack.unpackb(data)
            if fields["v"] != _VERSION:
                raise FormatError(f"a catalogue entry has version {fields['v']!r}")
            return cls(
                Link.parse(fields["link"]),
                str(fields["name"]),
                str(fields["kind"]),
                int(fields["size"]),
                int(fields["chunks"]),
                str(fields["outcome"]),
                int(fields["copies"]),
                float(fields["put_at"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"a catalogue entry cannot be read: {error!r}") from error


class KeyValue(Protocol):
    """The part of the store's key-value tables this needs."""

    async def get(self, key: bytes) -> bytes | None: ...
    async def put(self, key: bytes, value: bytes) -> None: ...
    async def delete(self, key: bytes) -> object: ...
    def items(self) -> AsyncIterator[tuple[bytes, bytes]]: ...


class Catalogue:
    """The table, keyed by the digest of the link's root."""

    def __init__(self, table: KeyValue) -> None:
        self._table = table

    async def add(self, entry: CatalogueEntry) -> None:
        await self._table.put(entry.link.digest, entry.to_bytes())

    async def entries(self) -> list[CatalogueEntry]:
        """All entries, newest first."""
        found = [CatalogueEntry.from_bytes(value) async for _key, value in self._table.items()]
        return sorted(found, key=lambda entry: entry.put_at, reverse=True)

    async def find(self, digest: bytes) -> CatalogueEntry:
        """Raises:
        NotFoundError: nothing of that name was put here.
        """
        value = await self._table.get(digest)
        if value is None:
            raise NotFoundError(
                "This link was not put on this node.",
                hint="`meshnode ls` lists what was; remove it on the node it was put on.",
            )
        return CatalogueEntry.from_bytes(value)

    async def remove(self, digest: bytes) -> None:
        await self._table.delete(digest)
