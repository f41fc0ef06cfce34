"""Where a get goes, given what is there already."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ...errors import DestinationError
from .source import strerror

MAX_NAME_BYTES = 255


def choose_target(destination: Path, name: bytes, *, is_tree: bool, force: bool) -> Path:
    """Where content called `name` goes when the user said `destination`; like cp, an existing
    folder means "in there, under its own name".

    Raises:
        DestinationError: it exists and `force` is not given, or cannot be replaced by this kind
            of thing, or is a device, pipe or socket, or the folder it should go into is missing
            or may not be entered.
    """
    try:
        return _choose(destination, name, is_tree=is_tree, force=force)
    except OSError as error:
        raise DestinationError(
            f"{destination} cannot be written: {strerror(error)}.",
            hint="Check its permissions, or choose another place with -o.",
        ) from error


def _choose(destination: Path, name: bytes, *, is_tree: bool, force: bool) -> Path:
    target = destination
    if destination.is_dir():
        target = destination / os.fsdecode(_safe_name(name))
    if not target.parent.is_dir():
        what = "is not a folder" if target.parent.exists() else "does not exist"
        raise DestinationError(
            f"{target.parent} {what}, so nothing can be written there.",
            hint="Create it first, or choose another place with -o.",
        )
    if not os.path.lexists(target):
        return target
    if not force:
        raise DestinationError(
            f"{target} exists already; nothing was written.",
            hint="Choose another place with -o, or replace it with --force.",
        )
    mode = os.lstat(target).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
        raise DestinationError(
            f"{target} is a device, pipe or socket, and is never replaced; nothing was written.",
            hint="Choose another place with -o.",
        )
    folder_there = stat.S_ISDIR(mode)
    if folder_there != is_tree:
        there, wanted = ("folder", "file") if folder_there else ("file", "folder")
        raise DestinationError(
            f"{target} is a {there} and would be replaced by a {wanted}; nothing was written.",
            hint="Remove it first, or choose another place with -o.",
        )
    return target


def _safe_name(name: bytes) -> bytes:
    """A manifest cannot hold a name with "/" or ".."; a name is checked again where it is used."""
    safe = name.replace(b"/", b"_").replace(b"\0", b"_")[:MAX_NAME_BYTES]
    return safe if safe not in (b"", b".", b"..") else b"unnamed"
