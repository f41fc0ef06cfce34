"""The few calls the store makes on segment files: a narrow seam, so that tests can make disks fail.

Every method is one system call (or a loop of one until done) and raises `OSError` as the system
does; `disk_error` turns that into what the user sees.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ...errors import QuotaError, StoreError
from .protocol import Buffer

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Files(Protocol):
    """Segment files as the store uses them. Called from several threads at once."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """A descriptor for reading and writing; with `create`, of a file that was not there."""
        ...

    def close(self, fd: int) -> None: ...

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write some of `buffers` (their start) at `offset`; returns how many bytes."""
        ...

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """`length` bytes at `offset`; fewer only at the end of the file."""
        ...

    def sync(self, fd: int) -> None:
        """Return when content and size of the file are on stable storage."""
        ...

    def truncate(self, fd: int, size: int) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Return when names made or removed in `path` are on stable storage."""
        ...

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged writer may still use of the file system that holds `path`."""
        ...


class OsFiles:
    """The real thing."""

    def open(self, path: Path, *, create: bool = False) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        done = len(data)
        while done < length and (more := os.pread(fd, length - done, offset + done)):
            parts.append(more)
            done += len(more)
        return b"".join(parts)

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":
            # fsync there stops at the drive's cache.
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def disk_error(what: str, path: Path, error: OSError) -> StoreError | QuotaError:
    """The error a user should see when `what` (say, "write to") failed on `path`."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        return QuotaError(
            f"Cannot {what} {path}: {reason}.",
            hint="Free some space on that disk, or delete content from the store.",
        )
    return StoreError(
        f"Cannot {what} {path}: {reason}.",
        hint="Check the disk (cable, mount, permissions, system log) and start the node again.",
    )
