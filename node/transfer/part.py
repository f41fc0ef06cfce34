"""What an unfinished get leaves beside its destination, so that the next one goes on from there.

    .NAME.meshnode-XXXXXXXX.part           the file, or the folder, as far as it is written
    .NAME.meshnode-XXXXXXXX.part.journal   which chunks of it were verified and written

X is made of the link, the path in it and the destination, so the same get finds its own part again
and no other does. The journal's lock belongs to the get that is at work; a second one is refused.

    journal = header  record*
    header  = "meshnode get 1" 00 00, identity (32), key (16), chunks (8), length of NAME (2), NAME,
              CRC-32 of all that (4)
    record  = chunk (4), tag (16), CRC-32 of both (4)

Numbers are big-endian. A tag is the AES-GMAC, under the journal's random key, of the bytes that the
chunk put into place: it finds what a crash or a failing disk did to them, at twice the speed of a
digest. It proves nothing, and needs not: what is kept is hashed like everything else, and the
digest of every whole file is checked before it gets its name. The last record of a chunk counts; a
torn record ends the journal.

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...errors import DestinationError
from .target import MAX_NAME_BYTES

_MAGIC = b"meshnode get 1\0\0"
_HEADER = struct.Struct(">16s32s16sQH")
_CRC = struct.Struct(">I")
_RECORD = struct.Struct(">I16s")
_RECORD_BYTES = _RECORD.size + _CRC.size
_MOST_TRIES = 3
"""Of each chunk, on average, that a journal is read for: beyond that it is not ours."""
_LOCK_TRIES = 100
_LONGEST_TAIL = len(".meshnode-00000000.part.journal")
TAG_BYTES = 16


def part_name(target: Path, identity: bytes, suffix: str = "part") -> Path:
    """Where the part of `target` lies; `identity` says of what it is a part."""
    name = os.fsencode(target.name)
    mark = blake3(identity + name).digest(4).hex()
    stem = name[: MAX_NAME_BYTES - _LONGEST_TAIL - 1]
    return target.parent / f".{os.fsdecode(stem)}.meshnode-{mark}.{suffix}"


class Tagger:
    """Tags of what chunks put into place, under one journal's key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def tag(self, chunk: int, ranges: Sequence[memoryview]) -> bytes:
        """Of all different ranges of a chunk that are used, in the order of their offsets."""
        tags = [
            self._cipher.encrypt(struct.pack(">II4x", chunk, number), b"", data)
            for number, data in enumerate(ranges)
        ]
        return tags[0] if len(tags) == 1 else self._of_tags(chunk, tags)

    def _of_tags(self, chunk: int, tags: Sequence[bytes]) -> bytes:
        nonce = struct.pack(">II4x", chunk, 0xFFFFFFFF)
        return self._cipher.encrypt(nonce, b"", b"".join(tags))


class Part:
    """The part of one get and its journal, locked from `open` to `remove` or `close`."""

    def __init__(self, target: Path, identity: bytes, chunks: int) -> None:
        self.path = os.fsencode(part_name(target, identity))
        self._journal = self.path + b".journal"
        self._target = target
        self._identity = identity
        self._chunks = chunks
        self._fd: int | None = None
        self.records: dict[int, bytes] = {}
        """Tags of the chunks that are said to be in place."""
        self._recorded = 0
        self.tagger = Tagger(bytes(16))

    def open(self, *, is_tree: bool) -> None:
        """Take the lock, and read what an earlier get left, if it can be of use.

        Raises:
            DestinationError: another get is at work on the same part.
            OSError: nothing can be written there.
        """
        self._fd = self._lock()
        self._remove_older_parts()
        if self._is_ours(is_tree) and self._read():
            return
        self.start_over()

    def start_over(self) -> None:
        """Nothing that is there is of use."""
        assert self._fd is not None
        _remove_part(self.path)
        self.records.clear()
        self._recorded = 0
        key = secrets.token_bytes(16)
        self.tagger = Tagger(key)
        name = os.fsencode(self._target.name)
        header = _HEADER.pack(_MAGIC, self._identity, key, self._chunks, len(name)) + name
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, header + _CRC.pack(zlib.crc32(header)), 0)

    def record(self, chunk: int, tag: bytes) -> None:
        """Note that a chunk is in place. Safe for many threads at once."""
        assert self._fd is not None
        body = _RECORD.pack(chunk, tag)
        os.write(self._fd, body + _CRC.pack(zlib.crc32(body)))  # O_APPEND: whole, in some order
        self._recorded += 1

    @property
    def holds_something(self) -> bool:
        return self._recorded > 0 or bool(self.records)

    def forget(self, chunk: int) -> None:
        """What is in place for `chunk` is not what it was."""
        self.records.pop(chunk, None)

    def remove(self) -> None:
        """Remove the part and its journal. Never raises for what is gone already."""
        if self._fd is not None:  # else it is not ours
            _remove_part(self.path)
            self.end()

    def end(self) -> None:
        """Remove the journal alone: the part has its name now."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._journal)
        self.close()

    def close(self) -> None:
        """Leave everything to a later get."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # --- the lock -----------------------------------------------------------------------------

    def _lock(self) -> int:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LOCK_TRIES):
                fd = _open_locked(self._journal, os.O_CREAT | os.O_APPEND)
                if fd is not None:
                    return fd
        raise DestinationError(
            f"Another get is fetching the same to {self._target} just now.",
            hint="Wait for it, or choose another place with -o.",
        )

    # --- what was left ------------------------------------------------------------------------

    def _is_ours(self, is_tree: bool) -> bool:
        """Whether there is a part of the right kind that belongs to this user."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        right = stat.S_ISDIR(found.st_mode) if is_tree else stat.S_ISREG(found.st_mode)
        return right and found.st_uid == os.geteuid()

    def _read(self) -> bool:
        """Read the journal; False when it is not about this get."""
        assert self._fd is not None
        key = _read_header(self._fd, self._identity, self._chunks)
        if key is None:
            return False
        self.tagger = Tagger(key)
        name_bytes = len(os.fsencode(self._target.name))
        start = _HEADER.size + name_bytes + _CRC.size
        most = _MOST_TRIES * max(self._chunks, 1) * _RECORD_BYTES
        data = _pread_up_to(self._fd, most, start)
        good = start
        for at in range(0, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
            chunk, tag = _RECORD.unpack_from(data, at)
            (crc,) = _CRC.unpack_from(data, at + _RECORD.size)
            if crc != zlib.crc32(data[at : at + _RECORD.size]) or chunk >= self._chunks:
                break
            self.records[chunk] = tag
            good = start + at + _RECORD_BYTES
        os.ftruncate(self._fd, good)  # what follows a torn record would never be read
        return True

    def _remove_older_parts(self) -> None:
        """At most one part is kept per destination: those of other links go, unless in use."""
        folder = os.fsencode(self._target.parent)
        stem = os.path.basename(self.path)[: -len(b"00000000.part")]
        journals: list[bytes] = []
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            journals += [
                entry.path
                for entry in entries
                if entry.name.startswith(stem) and entry.name.endswith(b".part.journal")
            ]
        for journal in journals:
            if journal != self._journal:
                _remove_older(journal, os.fsencode(self._target.name))


def _open_locked(path: bytes, flags: int) -> int | None:
    """A locked descriptor of what `path` names now; None: it was removed meanwhile.

    Raises:
        BlockingIOError: somebody else has the lock.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        _flock(fd)
        there, here = os.stat(path, follow_symlinks=False), os.fstat(fd)
        if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
            return fd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _flock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; a get there goes without.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def _remove_older(journal: bytes, name: bytes) -> None:
    """Remove a part that was kept for the same destination, if nobody is at work on it."""
    with contextlib.suppress(OSError):  # in use, or not ours to remove
        fd = _open_locked(journal, 0)
        if fd is None:
            return
        try:
            if _names_target(fd, name):
                _remove_part(journal.removesuffix(b".journal"))
                os.unlink(journal)
        finally:
            os.close(fd)


def _names_target(fd: int, name: bytes) -> bool:
    header = _pread_up_to(fd, _HEADER.size + MAX_NAME_BYTES, 0)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        return False
    (length,) = _HEADER.unpack_from(header)[4:]
    return header[_HEADER.size :][:length] == name


def _read_header(fd: int, identity: bytes, chunks: int) -> bytes | None:
    """The key of a journal about `identity`; None when it is another's, or torn."""
    data = _pread_up_to(fd, _HEADER.size + MAX_NAME_BYTES + _CRC.size, 0)
    if len(data) < _HEADER.size:
        return None
    magic, found, key, count, length = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    if len(data) < end + _CRC.size or _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        return None
    return key if (magic, found, count) == (_MAGIC, identity, chunks) else None


def _pread_up_to(fd: int, most: int, at: int) -> bytes:
    parts = []
    while most and (part := os.pread(fd, min(most, 1 << 20), at)):
        parts.append(part)
        at, most = at + len(part), most - len(part)
    return b"".join(parts)


def _remove_part(path: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove_tree(path)


def remove_tree(root: bytes) -> None:
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
