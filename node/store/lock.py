"""One process per data directory, by an operating-system lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import StoreError, StoreLockedError
from .files import disk_error

_PID_BYTES = 32


@contextmanager
def exclusive_lock(path: Path, data_dir: Path) -> Iterator[None]:
    """Hold the lock file `path`; its content, our pid, is for people and for error messages.

    The file stays when the lock goes: removing it would let two processes lock two files of the
    same name.

    Raises:
        StoreLockedError: another open store holds it (also one in this very process).
        StoreError: the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error("open the lock file", path, error) from error
    try:
        _acquire(fd, path, data_dir)
        yield
        # A clean end leaves no pid behind that may belong to somebody else tomorrow.
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, data_dir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, _PID_BYTES, 0).decode("ascii", "replace").strip()
        who = f"process {owner}" if owner.isdigit() else "another process"
        raise StoreLockedError(
            f"The data directory {data_dir} is in use by {who} (lock file {path}).",
            hint="Talk to that node, stop it with `meshnode stop`, or use another --home.",
        ) from None
    except OSError as error:
        raise StoreError(
            f"Cannot lock {path}: {error.strerror}.",
            hint="The file system must support flock; keep the data directory on a local disk.",
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
