"""What lies where in a data directory, and which version of the format it has.

The file `format` is one line of JSON: `{"format": 1, "store": "<32 hex digits>"}`. It is written
before anything else, replaced only as a whole, and read before anything else is touched.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from ...errors import StoreError
from .files import Files
from .frames import HEADER_BYTES, STORE_ID_BYTES, decode_segment_header

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("meshnode.store")

FORMAT = 1
"""The version this code writes."""

Migration = Callable[[Path], None]

MIGRATIONS: Mapping[int, Migration] = {}
"""From version n to n + 1, by n. A migration must be safe to run again after a crash half-way."""

_MAX_FORMAT_FILE = 512
_SEGMENT_SUFFIX = ".seg"
_SEGMENT_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @property
    def format_file(self) -> Path:
        return self.root / "format"

    @property
    def index(self) -> Path:
        return self.root / "index.db"

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    def segment(self, number: int) -> Path:
        return self.segments / f"{number:0{_SEGMENT_DIGITS}d}{_SEGMENT_SUFFIX}"

    def segment_size(self, number: int) -> int:
        """Size in bytes of one segment file; 0 when it is not there."""
        try:
            return self.segment(number).stat().st_size
        except OSError:
            return 0

    def segment_sizes(self) -> dict[int, int]:
        """Size in bytes of every segment file, by number, ascending. Other files are ignored."""
        found: dict[int, int] = {}
        with os.scandir(self.segments) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                is_number = len(stem) == _SEGMENT_DIGITS and stem.isascii() and stem.isdigit()
                if suffix == _SEGMENT_SUFFIX and is_number:
                    found[int(stem)] = entry.stat().st_size
        return dict(sorted(found.items()))


def prepare(
    layout: Layout,
    files: Files,
    *,
    current: int = FORMAT,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> bytes:
    """Make or check the data directory, migrating an older one; returns the store's id (16 bytes).

    Raises:
        StoreError: made by a newer version, or not a data directory of ours.
        OSError: the directory cannot be made or read.
    """
    layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    layout.segments.mkdir(exist_ok=True, mode=0o700)
    if not layout.format_file.exists():
        store_id = _id_from_segments(layout, files) or secrets.token_bytes(STORE_ID_BYTES)
        _write_format(layout, files, current, store_id)
        return store_id
    version, store_id = _read_format(layout)
    if version > current:
        raise StoreError(
            f"The data directory {layout.root} has format {version}; this meshnode knows formats "
            f"up to {current}.",
            hint="Run a newer meshnode, or use another --home. Nothing was changed.",
        )
    while version < current:
        log.info("store_migrating", path=str(layout.root), found=version, to=version + 1)
        migrations[version](layout.root)
        version += 1
        _write_format(layout, files, version, store_id)
    return store_id


def _read_format(layout: Layout) -> tuple[int, bytes]:
    with open(layout.format_file, "rb") as file:
        raw = file.read(_MAX_FORMAT_FILE)
    try:
        found = json.loads(raw)
        version = found["format"]
        store_id = bytes.fromhex(found["store"])
        if type(version) is not int or version < 1 or len(store_id) != STORE_ID_BYTES:
            raise ValueError("out of range")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{layout.format_file} is not a meshnode format file ({error}).",
            hint="Restore it from a backup, or move it away: it is then made again from the "
            "segment files.",
        ) from error
    return version, store_id


def _write_format(layout: Layout, files: Files, version: int, store_id: bytes) -> None:
    draft = layout.format_file.with_suffix(".new")
    with open(draft, "wb") as file:
        file.write(json.dumps({"format": version, "store": store_id.hex()}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, layout.format_file)
    files.sync_directory(layout.root)
    files.sync_directory(layout.root.parent)


def _id_from_segments(layout: Layout, files: Files) -> bytes | None:
    """The store id that the segments carry, for a directory whose format file was lost."""
    numbers = layout.segment_sizes()
    for number in numbers:
        fd = files.open(layout.segment(number))
        try:
            header = decode_segment_header(files.read(fd, HEADER_BYTES, 0))
        finally:
            files.close(fd)
        if header is not None:
            log.warning("store_format_file_restored", path=str(layout.format_file))
            return header[0]
    if any(size > HEADER_BYTES for size in numbers.values()):
        raise StoreError(
            f"{layout.root} has segment files but no format file, and none of them has a header "
            "this meshnode knows.",
            hint="Restore the file `format` from a backup. Nothing was changed.",
        )
    return None
