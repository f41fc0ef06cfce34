"""Writing a get to disk: staged beside its destination, checked, then renamed into place.

Nothing appears under the wanted name before it is whole and its digest has been checked. Until then
it lives as `.NAME.meshnode-XXXXXXXX.part` in the same folder (so that the rename is atomic), and
goes away on any failure.

Durability: with `durable` every file's data is on the disk before the rename (a file: fdatasync;
a folder: one sync of everything), so that a power cut leaves either nothing or the whole thing
under the wanted name.

Everything here blocks: call it in worker threads. `write` may run in many threads at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from ...errors import DestinationError, IntegrityError, MeshError, QuotaError
from .frontier import Frontier
from .plan import GetPlan, TargetFile, TargetNode, Write
from .target import MAX_NAME_BYTES

_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_RESERVE_ABOVE = 1 << 20


class Staging:
    """One get's place on disk, from `prepare` to `commit` or `discard`."""

    def __init__(self, plan: GetPlan, target: Path, *, force: bool, durable: bool) -> None:
        self._plan = plan
        self._target = target
        self._force = force
        self._durable = durable
        self._path = os.fsencode(_sibling(target, "part"))
        self._frontiers: dict[int, Frontier] = {}
        self._lock = threading.Lock()
        self._root_mode = 0o700

    def prepare(self) -> None:
        """Make the folders, reserve the space of large files, make the empty ones.

        Raises:
            QuotaError: the disk has not enough room; says how much is needed and free.
            DestinationError: not writable.
        """
        with self._explained():
            self._check_room()
            if self._plan.is_tree:
                os.mkdir(self._path)
                self._root_mode = stat.S_IMODE(os.lstat(self._path).st_mode)
                os.chmod(self._path, 0o700)  # nobody looks into what is half there
                self._make_folders()
            for index, file in enumerate(self._plan.files):
                if file.pieces == 0:
                    self._finish_file(index, self._open(file, os.O_EXCL), blake3().digest())
                elif file.size >= _RESERVE_ABOVE:
                    self._reserve(file)

    def write(self, writes: Sequence[Write], plain: bytes) -> None:
        """Put an opened chunk's bytes into place; a file whose last bytes these were is checked
        and finished.

        Raises:
            IntegrityError: a finished file has not the digest its manifest says.
            QuotaError, DestinationError: the disk said no.
        """
        view = memoryview(plain)
        with self._explained():
            for write in writes:
                self._write_one(write, view[write.chunk_offset :][: write.length])

    def finish(self) -> None:
        """All bytes are written: make symlinks, set folder modes and times."""
        with self._explained():
            for link in self._plan.symlinks:
                self._make_symlink(link)
            for folder in sorted(self._plan.folders, key=lambda f: f.path, reverse=True):
                path = self._at(folder.path)
                os.chmod(path, folder.mode & 0o777)
                os.utime(path, ns=(folder.mtime_ns, folder.mtime_ns))
            if self._plan.is_tree:
                # The manifest has no mode for the folder that was put: what mkdir would give.
                os.chmod(self._path, self._root_mode)

    def flush(self) -> None:
        """With `durable`, have what is written so far on the disk.

        Can take long, and may be abandoned: it changes nothing that others see.
        """
        if not self._durable or not (self._plan.is_tree or self._plan.files):
            return
        with self._explained():
            if self._plan.is_tree:
                os.sync()  # one flush of the disk; one per file would be thousands
                return
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def commit(self) -> None:
        """Rename into place."""
        with self._explained():
            self._rename()
            if self._durable:
                _sync_folder(self._target.parent)

    def discard(self) -> None:
        """Remove whatever is there. Never raises for what is already gone."""
        with contextlib.suppress(FileNotFoundError):
            if self._plan.is_tree:
                _remove_tree(self._path)
            else:
                os.unlink(self._path)

    # --- files --------------------------------------------------------------------------------

    def _at(self, relative: bytes) -> bytes:
        return os.path.join(self._path, relative) if relative else self._path

    def _open(self, file: TargetFile, flags: int = 0) -> int:
        return os.open(self._at(file.path), _CREATE | flags, 0o600)

    def _reserve(self, file: TargetFile) -> None:
        fd = self._open(file, os.O_EXCL)
        try:
            os.posix_fallocate(fd, 0, file.size)
        except OSError as error:
            # Not every file system can; the writes themselves will tell about a full disk.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        finally:
            os.close(fd)

    def _write_one(self, write: Write, data: memoryview) -> None:
        file = self._plan.files[write.file]
        fd = self._open(file)
        try:
            _pwrite_all(fd, data, write.file_offset)
            digest = self._digest_after(fd, file, write, data)
        except BaseException:
            os.close(fd)
            raise
        if digest is None:
            os.close(fd)
        else:
            self._finish_file(write.file, fd, digest)

    def _digest_after(
        self, fd: int, file: TargetFile, write: Write, data: memoryview
    ) -> bytes | None:
        if file.pieces == 1:
            return blake3(data).digest()
        with self._lock:
            frontier = self._frontiers.get(write.file)
            if frontier is None:
                frontier = self._frontiers[write.file] = Frontier(file.pieces)
        return frontier.add(fd, write, data)

    def _finish_file(self, index: int, fd: int, digest: bytes) -> None:
        file = self._plan.files[index]
        try:
            if digest != file.digest:
                shown = file.path.decode("utf-8", "backslashreplace") or self._target.name
                raise IntegrityError(
                    f"{shown!r} does not have the digest its manifest says, although every chunk "
                    "of it does: the manifest is wrong.",
                    hint="Ask whoever made the link to put the file again.",
                )
            os.fchmod(fd, file.mode & 0o777)
            if file.mtime_ns:  # zero: put from a stream, which has none
                os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        finally:
            os.close(fd)
        with self._lock:
            self._frontiers.pop(index, None)

    # --- the tree -----------------------------------------------------------------------------

    def _make_folders(self) -> None:
        needed = {folder.path for folder in self._plan.folders if folder.path}
        paths = [file.path for file in self._plan.files]
        paths += [node.path for node in (*self._plan.symlinks, *self._plan.folders)]
        for path in paths:
            parent = path.rpartition(b"/")[0]
            while parent and parent not in needed:
                needed.add(parent)
                parent = parent.rpartition(b"/")[0]
        for path in sorted(needed):
            os.mkdir(self._at(path), 0o700)

    def _make_symlink(self, link: TargetNode) -> None:
        path = self._at(link.path)
        os.symlink(link.target or b"", path)
        os.utime(path, ns=(link.mtime_ns, link.mtime_ns), follow_symlinks=False)

    def _check_room(self) -> None:
        room = os.statvfs(self._target.parent)
        free = room.f_bavail * room.f_frsize
        if self._plan.total_bytes > free:
            raise self._disk_full(free)

    def _rename(self) -> None:
        target = os.fsencode(self._target)
        if self._force and self._plan.is_tree and os.path.lexists(target):
            self._swap_tree(target)
        elif self._force or self._plan.is_tree or not _link_into_place(self._path, target):
            # A folder's rename refuses by itself to replace anything but an empty folder.
            if not self._force and os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._target))
            os.rename(self._path, target)

    def _swap_tree(self, target: bytes) -> None:
        old = os.fsencode(_sibling(self._target, "old"))
        os.rename(target, old)
        try:
            os.rename(self._path, target)
        except OSError:
            os.rename(old, target)
            raise
        _remove_tree(old)

    # --- errors -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> MeshError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = os.statvfs(self._target.parent)
            return self._disk_full(room.f_bavail * room.f_frsize)
        if error.errno == errno.EEXIST:
            return DestinationError(
                f"{self._target} appeared while it was being fetched; nothing was replaced.",
                hint="Choose another place with -o, or replace it with --force.",
            )
        return DestinationError(
            f"{self._target} cannot be written: {error.strerror or error}.",
            hint="Choose another place with -o, or mend its permissions.",
        )

    def _disk_full(self, free: int) -> QuotaError:
        return QuotaError(
            f"No room for {self._target}: {self._plan.total_bytes} bytes are needed, "
            f"{free} are free on its disk.",
            hint="Free some space, or choose another disk with -o.",
        )


def _sibling(target: Path, suffix: str) -> Path:
    tail = f".meshnode-{secrets.token_hex(4)}.{suffix}"
    stem = os.fsencode(target.name)[: MAX_NAME_BYTES - len(tail) - 1]
    return target.parent / f".{os.fsdecode(stem)}{tail}"


def _link_into_place(staged: bytes, target: bytes) -> bool:
    """Give the file its name only if the name is free, in one step; False: not possible here."""
    if not stat.S_ISREG(os.lstat(staged).st_mode):
        return False
    try:
        os.link(staged, target)
    except FileExistsError:
        raise
    except OSError:
        return False  # a file system without hard links
    os.unlink(staged)
    return True


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_tree(root: bytes) -> None:
    """Remove a tree of any depth (`shutil.rmtree` recurses), also folders made read-only by their
    manifest. Links in it are removed, never followed; what is no folder itself is only unlinked."""
    if not stat.S_ISDIR(os.lstat(root).st_mode):
        os.unlink(root)
        return
    folders = [root]
    for folder in folders:  # grows while it is walked
        os.chmod(folder, 0o700)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    os.unlink(entry.path)
    for folder in reversed(folders):
        os.rmdir(folder)
