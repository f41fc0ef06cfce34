"""Names and paths inside a manifest: bytes, relative, and unable to lead out of the tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...errors import FormatError
from .limits import MAX_NAME_BYTES, MAX_PATH_BYTES

_MAX_STEPS: Final = 256
"""Path parts looked at for one symlink; what needs more counts as leaving the tree."""

_DOTS: Final = (b".", b"..")


def check_name(name: bytes) -> None:
    """Check the name of a file or folder on its own; empty (stdin) is allowed.

    Raises:
        FormatError: longer than 255 bytes, `.` or `..`, or with a slash or NUL inside.
    """
    if len(name) > MAX_NAME_BYTES or b"/" in name or b"\0" in name or name in _DOTS:
        raise FormatError(f"{shown(name)} cannot be the name of a file.")


def check_path(path: bytes) -> None:
    """Check a path relative to the root of the tree: parts joined by single slashes.

    Raises:
        FormatError: empty, absolute, above 4096 bytes, with NUL, or with a part that is empty,
            `.`, `..` or longer than 255 bytes.
    """
    if not 0 < len(path) <= MAX_PATH_BYTES or b"\0" in path:
        raise FormatError(f"{shown(path)} cannot be a path: empty, too long, or with a NUL.")
    for part in path.split(b"/"):
        if not 0 < len(part) <= MAX_NAME_BYTES or part in _DOTS:
            raise FormatError(f"{shown(path)} cannot be a path: {shown(part)} is no part of one.")


def parent(path: bytes) -> bytes:
    """The folder a path lies in; empty for the root of the tree."""
    return path.rpartition(b"/")[0]


def shown(name: bytes) -> str:
    """A name for an error message, shortened, whatever bytes it holds."""
    text = name[:80].decode("utf-8", "backslashreplace")
    return f"{text!r}" if len(name) <= 80 else f"{text!r}..."


def leads_outside(links: Mapping[bytes, bytes], path: bytes) -> bool:
    """Whether following the symlink at `path` leaves the tree.

    Looks through other symlinks of the same tree as a kernel would, because `a/..` is not the
    folder above `a` when `a` is itself a symlink. Says nothing about symlinks that exist on disk
    besides those of the tree. Loops and very long chains count as leaving.

    Args:
        links: path -> target of every symlink of the tree.
        path: a key of `links`.
    """
    here = parent(path).split(b"/") if b"/" in path else []
    target = links[path]
    todo: list[bytes] = []
    for _ in range(_MAX_STEPS):
        if target:
            if target.startswith(b"/") or b"\0" in target:
                return True
            todo.extend(reversed(target.split(b"/")[:_MAX_STEPS]))
            target = b""
        if not todo:
            return False
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part != b"..":
            here.append(part)
            target = links.get(b"/".join(here), b"")
            if target:
                here.pop()
        elif here:
            here.pop()
        else:
            return True
    return True
