"""Writing a get to disk: staged beside its destination, checked, then renamed into place.

Nothing appears under the wanted name before it is whole and its digest has been checked. Until then
it lives as a part in the same folder (so that the rename is atomic), with a journal of what is in
place; see `part`. A get that is broken off may leave both to the next one, which checks what it
takes over.

Durability: with `durable` every file's data is on the disk before the rename (a file: fdatasync;
a folder: one sync of everything), so that a power cut leaves either nothing or the whole thing
under the wanted name.

Everything here blocks: call it in worker threads. `write` may run in many threads at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from ...errors import DestinationError, IntegrityError, MeshError, QuotaError
from ..store.protocol import Buffer
from .frontier import Frontier
from .part import Part
from .placing import make_root, put_in_place, sync_folder
from .plan import GetPlan, TargetFile, TargetNode, Write, folders_of
from .sweep import sweep

_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_RESERVE_ABOVE = 1 << 20


class WholeDigestError(IntegrityError):
    """A file is complete and has not the digest its manifest says."""


class Staging:
    """One get's place on disk, from `prepare` to `commit`, `leave` or `discard`.

    Args:
        identity: says of what this is a get: the same for the same link and path only.
    """

    def __init__(
        self,
        plan: GetPlan,
        target: Path,
        *,
        force: bool,
        durable: bool,
        identity: bytes = bytes(32),
    ) -> None:
        self._plan = plan
        self._target = target
        self._force = force
        self._durable = durable
        self._part = Part(target, identity, len(plan.chunks))
        self._path = self._part.path
        self._frontiers: dict[int, Frontier] = {}
        self._lock = threading.Lock()
        self._root_mode = 0o700

    @property
    def part_path(self) -> Path:
        """Where it is written until it is whole."""
        return Path(os.fsdecode(self._path))

    @property
    def holds_something(self) -> bool:
        """Whether a later get could go on from here."""
        return self._part.holds_something

    def prepare(self) -> Sequence[int]:
        """Make the folders, reserve the space of large files, make the empty ones.

        Returns:
            Chunks that an earlier get says to have put into place; to be checked by `recheck`.

        Raises:
            QuotaError: the disk has not enough room; says how much is needed and free.
            DestinationError: not writable, or another get is at work on the same.
        """
        with self._explained():
            self._part.open(is_tree=self._plan.is_tree)
            self._check_room()
            if self._plan.is_tree:
                self._root_mode = make_root(self._path)
                sweep(self._path, self._plan)
                for path in sorted(folders_of(self._plan)):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(self._at(path), 0o700)
            for index, file in enumerate(self._plan.files):
                if file.pieces == 0:
                    self._finish_file(index, self._open(file), blake3().digest())
                elif file.size >= _RESERVE_ABOVE:
                    self._reserve(file)
        return sorted(self._part.records)

    def recheck(self, chunk: int) -> bool:
        """Whether what an earlier get put into place for a chunk is there still; if so it counts as
        written. May run in many threads, before the first `write`.

        Raises:
            WholeDigestError: as `write`.
        """
        writes = self._plan.writes[chunk]
        with self._explained():
            found = [self._read_back(write) for write in writes]
            ranges = _ranges(writes, found)
            same = all(
                data == ranges.get((write.chunk_offset, write.length))
                for write, data in zip(writes, found, strict=True)
            )
            views = [memoryview(ranges[key] or b"") for key in sorted(ranges)]
            if not same or self._part.tagger.tag(chunk, views) != self._part.records[chunk]:
                self._part.forget(chunk)
                return False
            for write, data in zip(writes, found, strict=True):
                fd = self._open(self._plan.files[write.file])
                self._count(fd, write, memoryview(data or b""))
        return True

    def write(self, chunk: int, plain: Buffer) -> None:
        """Put an opened chunk's bytes into place; a file whose last bytes these were is checked
        and finished.

        Raises:
            WholeDigestError: a finished file has not the digest its manifest says.
            QuotaError, DestinationError: the disk said no.
        """
        view = memoryview(plain)
        writes = self._plan.writes[chunk]
        ranges = {(w.chunk_offset, w.length): view[w.chunk_offset :][: w.length] for w in writes}
        with self._explained():
            tag = self._part.tagger.tag(chunk, [ranges[key] for key in sorted(ranges)])
            for write in writes:
                self._write_one(write, ranges[write.chunk_offset, write.length])
            self._part.record(chunk, tag)

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
            put_in_place(self._path, self._target, is_tree=self._plan.is_tree, force=self._force)
            self._part.end()
            if self._durable:
                sync_folder(self._target.parent)

    def leave(self) -> None:
        """Break off, and keep what is in place for a later get; nothing, if nothing is."""
        if self._part.holds_something:
            self._part.close()
        else:
            self._part.remove()

    def discard(self) -> None:
        """Remove whatever is there. Never raises for what is already gone."""
        self._part.remove()

    # --- files --------------------------------------------------------------------------------

    def _at(self, relative: bytes) -> bytes:
        return os.path.join(self._path, relative) if relative else self._path

    def _open(self, file: TargetFile) -> int:
        return os.open(self._at(file.path), _CREATE, 0o600)

    def _read_back(self, write: Write) -> bytes | None:
        """What lies where `write` should have gone; None when there is no such file."""
        try:
            path = self._at(self._plan.files[write.file].path)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return pread_all(fd, write.length, write.file_offset)
        finally:
            os.close(fd)

    def _reserve(self, file: TargetFile) -> None:
        fd = self._open(file)
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
        except BaseException:
            os.close(fd)
            raise
        self._count(fd, write, data)

    def _count(self, fd: int, write: Write, data: memoryview) -> None:
        """A slice is in place: hash it when its turn comes, finish its file. Closes `fd`."""
        file = self._plan.files[write.file]
        try:
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
                raise WholeDigestError(
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

    def _make_symlink(self, link: TargetNode) -> None:
        path = self._at(link.path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(link.target or b"", path)
        os.utime(path, ns=(link.mtime_ns, link.mtime_ns), follow_symlinks=False)

    def _check_room(self) -> None:
        room = os.statvfs(self._target.parent)
        free = room.f_bavail * room.f_frsize
        here = sum(
            write.length for chunk in self._part.records for write in self._plan.writes[chunk]
        )
        if self._plan.total_bytes - here > free:
            raise self._disk_full(free)

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


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def pread_all(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes; fewer only at the end of the file."""
    parts = []
    while length and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _ranges(
    writes: Sequence[Write], found: Sequence[bytes | None]
) -> dict[tuple[int, int], bytes | None]:
    """The different ranges of a chunk that are used, each as it was found first."""
    ranges: dict[tuple[int, int], bytes | None] = {}
    for write, data in zip(writes, found, strict=True):
        ranges.setdefault((write.chunk_offset, write.length), data)
    return ranges
