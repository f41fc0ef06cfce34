"""What is to be put: walking what the user named, without following anything inside it.

A link the user names himself is followed; links inside a folder are kept as links, so no loop can
arise there. What cannot be read is reported and the rest goes on. Everything here blocks: call it
in worker threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError

MAX_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class StreamSource:
    """Bytes of unknown number from somewhere (stdin, an upload), to be put under `name`."""

    name: str
    chunks: AsyncIterator[bytes]


Source = Path | StreamSource


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file to read."""

    path: bytes
    """Relative to the folder put; b"" for a file put by itself."""
    real_path: bytes
    size: int
    follow: bool = False
    """Whether `real_path` may be a symlink (the user named it)."""


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A folder (`target` None) or a symlink."""

    path: bytes
    mode: int
    mtime_ns: int
    target: bytes | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A path that could not be put, and why, in words."""

    path: bytes
    reason: str

    @property
    def shown(self) -> str:
        return self.path.decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Found:
    """What one named path holds."""

    name: bytes
    is_tree: bool
    files: list[FoundFile] = field(default_factory=list)
    nodes: list[FoundNode] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    left_out: list[bytes] = field(default_factory=list)
    """Folders not descended into, because the caller said so."""

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def look_at(path: Path, leave_out: Collection[Path] = ()) -> Found:
    """What is at `path`: one file, or everything in a folder.

    Args:
        leave_out: folders that are never put, wherever they turn up; those that do not exist
            leave nothing out.

    Raises:
        InputError: there is nothing to put: missing, unreadable, a loop of links, a device.
    """
    forbidden = _identities(leave_out)
    raw = os.fsencode(path)
    try:
        info = os.stat(raw)
    except OSError as error:
        raise InputError(_why_not(path, error), hint=_hint(error)) from error
    name = os.path.basename(os.path.abspath(raw)) or b"root"
    if stat.S_ISREG(info.st_mode):
        return Found(name, False, [FoundFile(b"", raw, info.st_size, follow=True)])
    if not stat.S_ISDIR(info.st_mode):
        raise InputError(
            f"{path} is a {kind_name(info.st_mode)}; only files and folders can be put.",
            hint="To put what comes out of it, pipe it: `... | meshnode put -`.",
        )
    if (info.st_dev, info.st_ino) in forbidden:
        raise InputError(
            f"{path} is this node's own folder; it holds the secret of the mesh and is never put.",
            hint="Copy what you want to keep of it to another folder first.",
        )
    found = Found(name, True)
    try:
        _walk(raw, found, forbidden)
    except OSError as error:
        raise InputError(_why_not(path, error), hint=_hint(error)) from error
    return found


def _identities(folders: Collection[Path]) -> frozenset[tuple[int, int]]:
    found = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            info = os.stat(folder)
            found.add((info.st_dev, info.st_ino))
    return frozenset(found)


def _walk(root: bytes, found: Found, forbidden: Collection[tuple[int, int]]) -> None:
    """Everything below `root`. An explicit stack: folders nest deeper than Python's own."""
    stack: list[bytes] = [b""]
    while stack:
        folder = stack.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder) if folder else root))
        except OSError as error:
            if not folder:
                raise
            found.failures.append(Failure(folder, strerror(error)))
            continue
        for entry in entries:
            relative = folder + b"/" + entry.name if folder else entry.name
            try:
                if not _note(entry, relative, found, forbidden):
                    continue
                stack.append(relative)
            except OSError as error:
                found.failures.append(Failure(relative, strerror(error)))
    found.files.sort(key=lambda file: file.path)


def _note(
    entry: os.DirEntry[bytes],
    relative: bytes,
    found: Found,
    forbidden: Collection[tuple[int, int]],
) -> bool:
    """Record one entry; True for a folder to descend into."""
    info = entry.stat(follow_symlinks=False)
    mode, mtime_ns = stat.S_IMODE(info.st_mode), info.st_mtime_ns
    if len(relative) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if stat.S_ISREG(info.st_mode):
        found.files.append(FoundFile(relative, entry.path, info.st_size))
    elif stat.S_ISLNK(info.st_mode):
        target = os.readlink(entry.path)
        found.nodes.append(FoundNode(relative, mode, mtime_ns, target))
    elif (info.st_dev, info.st_ino) in forbidden:
        found.left_out.append(relative)
    elif stat.S_ISDIR(info.st_mode):
        found.nodes.append(FoundNode(relative, mode, mtime_ns, None))
        return True
    else:
        found.failures.append(Failure(relative, f"is a {kind_name(info.st_mode)}"))
    return False


def kind_name(mode: int) -> str:
    """What a special file is called."""
    if stat.S_ISFIFO(mode):
        return "named pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "device"
    return "special file"


def strerror(error: OSError) -> str:
    """The system's words for an error, in lower case as part of a sentence."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def _why_not(path: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{path} cannot be put: its symbolic links lead in a circle."
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"{path} cannot be put: it is a link to something that does not exist."
    return f"{path} cannot be put: {strerror(error)}."


def _hint(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "Run as a user who may read it, or change its permissions."
    if error.errno == errno.ELOOP:
        return "Name the real file, or mend the links."
    return "Check the spelling and the current folder."
