"""What was put on this node: one entry per link, kept until `rm`.

The entry holds the whole link, key included: the catalogue is as secret as the mesh secret, and its
files are readable by their owner alone. Each entry is a file of its own rather than a row of the
store's database, because the database can be rebuilt from the segments and links cannot: they are
the only keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import structlog
import trio

from ...config.durable import replace_file
from ...errors import FormatError, LinkError, NotFoundError, StoreError
from ..content import Link

log = structlog.get_logger(__name__)

_VERSION = 1
_SUFFIX = ".entry"
_MAX_ENTRY_BYTES = 64 * 1024


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
        # Names are file names: any bytes, carried in text as `os.fsdecode` does.
        packed: bytes = msgpack.packb(
            {"v": _VERSION, **self.to_json()}, unicode_errors="surrogateescape"
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> CatalogueEntry:
        """Raises:
        FormatError: not an entry, or one of a newer version.
        """
        try:
            fields: Mapping[str, Any] = msgpack.unpackb(
                data, unicode_errors="surrogateescape", strict_map_key=True
            )
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
        except (ValueError, KeyError, TypeError, LinkError) as error:
            raise FormatError(f"a catalogue entry cannot be read: {error!r}") from error


class Catalogue:
    """The entries, one file each in `folder`, named by the digest of the link's root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def add(self, entry: CatalogueEntry) -> None:
        """Write an entry; durable when this returns.

        Raises:
            StoreError: it cannot be written.
        """
        await trio.to_thread.run_sync(self._write, entry)

    def _write(self, entry: CatalogueEntry) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            replace_file(self._path(entry.link.digest), entry.to_bytes(), mode=0o600)
        except OSError as error:
            raise StoreError(
                f"The link to {entry.name!r} cannot be written down in {self._folder}: "
                f"{error.strerror}.",
                hint="Make room on that disk, or mend its permissions, and put it again.",
            ) from error

    async def entries(self) -> list[CatalogueEntry]:
        """All entries, newest first; one that cannot be read is left out and logged."""
        return await trio.to_thread.run_sync(self._read_all)

    def _read_all(self) -> list[CatalogueEntry]:
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                found.append(self._read(path))
            except (OSError, FormatError) as error:
                log.warning("catalogue_entry_unreadable", path=str(path), error=str(error))
        return sorted(found, key=lambda entry: entry.put_at, reverse=True)

    def _read(self, path: Path) -> CatalogueEntry:
        with path.open("rb") as file:
            return CatalogueEntry.from_bytes(file.read(_MAX_ENTRY_BYTES))

    async def find(self, digest: bytes) -> CatalogueEntry:
        """Raises:
        NotFoundError: nothing of that name was put here.
        """
        try:
            return await trio.to_thread.run_sync(self._read, self._path(digest))
        except FileNotFoundError:
            raise NotFoundError(
                "This link was not put on this node.",
                hint="`meshnode ls` lists what was; remove it on the node it was put on.",
            ) from None

    async def remove(self, digest: bytes) -> None:
        """Forget an entry; nothing happens when there is none."""
        await trio.to_thread.run_sync(partial(self._path(digest).unlink, missing_ok=True))

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}{_SUFFIX}"
