"""Small files that are either whole or not there, whatever happens while they are written.

Every write goes to a temporary file in the same folder, is flushed to the disk, takes its name in
one step, and the folder is flushed too: after a power cut the old or the new file is there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import FormatError, RefusedError, StoreError


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `path`, replacing what is there; the folder is made (0700) if need be.

    Raises:
        StoreError: the disk or the permissions do not let us.
    """
    with _told(path, "written"), _temporary(path, data, mode) as temporary:
        os.replace(temporary, path)
        _sync_folder(path.parent)


def create_file(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Write `path` unless it exists; whether it was written. Two writers cannot both win.

    Raises:
        StoreError: the disk or the permissions do not let us.
    """
    with _told(path, "written"), _temporary(path, data, mode) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync_folder(path.parent)
        return True


def read_private_file(path: Path, *, max_bytes: int, what: str) -> bytes | None:
    """The content of a file that holds a secret (`what` names it in errors); None if missing.

    Raises:
        RefusedError: group or others may read or write it (the rule ssh has for its keys).
        FormatError: not a regular file, or larger than `max_bytes`.
        StoreError: it cannot be read.
    """
    with _told(path, "read"):
        try:
            # Non-blocking, so that a pipe under this name cannot hold us up for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            _check_private(path, os.fstat(descriptor).st_mode, what)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    if len(data) > max_bytes:
        raise FormatError(f"{path} should hold {what}, but it is larger than {max_bytes} bytes.")
    return data


def _check_private(path: Path, mode: int, what: str) -> None:
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path} should hold {what}, but it is not a regular file.")
    if mode & 0o077:
        raise RefusedError(
            f"{path} holds {what}, and other users of this machine can get at it "
            f"(mode {stat.S_IMODE(mode):04o}).",
            hint=f"If nobody else has read it yet: chmod 600 '{path}'",
        )


@contextlib.contextmanager
def _temporary(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:64]}.{os.urandom(8).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path} cannot be {verb}: {reason}.") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
