"""Reading and cutting files into windows: the first stage of a put, in worker threads.

A window is one reused buffer with the pieces cut in it, of one big file or of many middling ones;
small files of a folder go into packs instead. Each file is hashed as a whole while it is read. A
file that changes meanwhile is read once more, and left out if it changes again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from ..content import ChunkerProfile, ChunkRef, Packer, PackSlot, SealedChunk, Sealer, cut
from .memory import untouched_memory
from .source import Failure, FoundFile, kind_name, strerror

_READ_BYTES = 1 << 20
"""Read and hash in steps that stay in the processor's cache."""
_LEAST_ROOM = 256 << 10
_MAX_FILES_PER_WINDOW = 1024
_WINDOW_BYTES = 8 << 20
_SPARE_BYTES = 64 << 10


def window_bytes(profile: ChunkerProfile) -> int:
    """How large a buffer must be: at least two of the largest chunks, so that what is carried from
    one window to the next is never more than half of it."""
    return max(_WINDOW_BYTES, 2 * profile.max_size)


@dataclass(slots=True, eq=False)
class Draft:
    """A file on its way into a manifest. `refs` fills as its pieces are sealed, in any order."""

    path: bytes
    mode: int
    mtime_ns: int
    size: int = 0
    digest: bytes = b""
    refs: list[ChunkRef | None] = field(default_factory=list)
    slot: PackSlot | None = None
    """Where it is in its pack, if it is in one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk's plaintext inside a window."""

    draft: Draft
    index: int
    start: int
    end: int


@dataclass(slots=True, eq=False)
class Window:
    """What one pass of reading brought."""

    buffer: memoryview
    used: int = 0
    pieces: list[Piece] = field(default_factory=list)
    packs: list[SealedChunk] = field(default_factory=list)
    finished: list[Draft] = field(default_factory=list)
    """Files read whole and unchanged; their pieces are in this window or earlier ones."""
    failures: list[Failure] = field(default_factory=list)
    bytes_read: int = 0


class SealedMemory:
    """What the chunks of one window are sealed into, and those of the next when they are stored:
    memory that is new for every chunk costs more than the sealing."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def room(self, window: Window, sealer: Sealer) -> memoryview:
        """For all pieces of `window`. What was sealed into it before is lost."""
        needed = len(window.buffer) + sealer.overhead * len(window.pieces)
        if len(self._memory) < needed:
            self._memory = untouched_memory(needed + _SPARE_BYTES)
        return self._memory


def seal_window(window: Window, sealer: Sealer, into: SealedMemory | None) -> list[SealedChunk]:
    """Seal all pieces and say so in their drafts; the window's buffer may be reused then.

    Args:
        into: None gives each chunk memory of its own, to be kept at will.

    Returns:
        Each chunk once, packs included.
    """
    sealed = {chunk.ref.digest: chunk for chunk in window.packs}
    room = None if into is None else into.room(window, sealer)
    for piece in window.pieces:
        chunk = sealer.seal_own(window.buffer[piece.start : piece.end], room)
        piece.draft.refs[piece.index] = chunk.ref
        if sealed.setdefault(chunk.ref.digest, chunk) is chunk and room is not None:
            room = room[chunk.ref.size :]
    return list(sealed.values())


class FileCut:
    """Cuts one file, window after window, and hashes the whole of it."""

    def __init__(self, draft: Draft, profile: ChunkerProfile) -> None:
        self.draft = draft
        self._profile = profile
        self._hasher = blake3()

    def hash(self, data: memoryview) -> None:
        """Take the next bytes of the file into its digest."""
        self._hasher.update(data)
        self.draft.size += len(data)

    def cut(self, window: Window, start: int, *, final: bool) -> int:
        """Add the chunks that are certain in `window.buffer[start:window.used]`.

        Returns where the uncertain rest begins; nothing is left when `final`.
        """
        view = window.buffer[start : window.used]
        begin = start
        for offset in cut(self._profile, view, final):
            window.pieces.append(Piece(self.draft, len(self.draft.refs), begin, start + offset))
            self.draft.refs.append(None)
            begin = start + offset
        if final:
            self.draft.digest = self._hasher.digest()
        return begin


class FilesReader:
    """Reads the files of one source, window by window. One call at a time, each in a thread.

    Args:
        packer: for files below `pack_below` bytes; None packs nothing.
    """

    def __init__(
        self,
        files: Sequence[FoundFile],
        profile: ChunkerProfile,
        packer: Packer | None,
        pack_below: int,
    ) -> None:
        self._files = files
        self._profile = profile
        self._packer = packer
        self._pack_below = pack_below if packer is not None else 0
        self._window = Window(memoryview(b""))
        self._carried = bytearray()
        """What one window had left over, until the next one has a buffer."""
        self._work = self._run()
        next(self._work)

    def fill(self, buffer: memoryview) -> Window | None:
        """Read on until `buffer` is full or all is read; None when there was nothing left."""
        try:
            return self._work.send(buffer)
        except StopIteration:
            return None

    def close(self) -> None:
        """Close the file being read, if any."""
        self._work.close()

    # --- one long walk over all files, which pauses whenever a window is full ---

    def _run(self) -> Generator[Window | None, memoryview]:
        self._window = Window((yield None))
        for file in self._files:
            yield from self._file(file)
            if self._crowded():
                self._window = Window((yield self._take_window()))
        if self._packer is not None:
            self._window.packs += self._packer.flush()
        yield self._window

    def _crowded(self) -> bool:
        window = self._window
        files = len(window.finished) + len(window.failures)
        room = len(window.buffer) - window.used
        return (
            files >= _MAX_FILES_PER_WINDOW
            or room < _LEAST_ROOM
            or window.bytes_read >= len(window.buffer)
        )

    def _take_window(self) -> Window:
        if self._packer is not None:
            self._window.packs += self._packer.take()
        return self._window

    def _file(self, file: FoundFile) -> Generator[Window, memoryview]:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe put there meanwhile: no wait
        if not file.follow:
            flags |= os.O_NOFOLLOW
        try:
            fd = os.open(file.real_path, flags)
        except OSError as error:
            self._window.failures.append(Failure(file.path, strerror(error)))
            return
        try:
            yield from self._try_twice(fd, file)
        except OSError as error:
            self._window.failures.append(Failure(file.path, strerror(error)))
        finally:
            os.close(fd)

    def _try_twice(self, fd: int, file: FoundFile) -> Generator[Window, memoryview]:
        for again in (False, True):
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                reason = f"became a {kind_name(before.st_mode)}"
                self._window.failures.append(Failure(file.path, reason))
                return
            if again:
                os.lseek(fd, 0, os.SEEK_SET)
            draft = Draft(file.path, stat.S_IMODE(before.st_mode), before.st_mtime_ns)
            if before.st_size < self._pack_below:
                whole = self._read_small(fd, draft, before.st_size)
            else:
                yield from self._read_large(fd, draft)
                whole = True
            if whole and draft.size == before.st_size and _same(before, os.fstat(fd)):
                self._window.finished.append(draft)
                return
        self._window.failures.append(Failure(file.path, "changed while being read"))

    def _read_small(self, fd: int, draft: Draft, size: int) -> bool:
        assert self._packer is not None
        data = os.read(fd, size + 1)
        if len(data) != size:
            return False
        draft.size = size
        draft.digest = blake3(data).digest()
        if data:
            draft.slot = self._packer.add(data, draft.digest)
        self._window.bytes_read += size
        return True

    def _read_large(self, fd: int, draft: Draft) -> Generator[Window, memoryview]:
        file = FileCut(draft, self._profile)
        start = self._window.used
        while True:
            window = self._window
            room = window.buffer[window.used :][:_READ_BYTES]
            if not room:
                start = yield from self._next_window(file.cut(window, start, final=False))
                continue
            count = os.readv(fd, [room])
            if not count:
                file.cut(window, start, final=True)
                return
            file.hash(room[:count])
            window.used += count
            window.bytes_read += count

    def _next_window(self, rest: int) -> Generator[Window, memoryview, int]:
        """Hand over a full window; what is not cut yet goes to the front of the next one."""
        count = self._window.used - rest
        if len(self._carried) < count:
            self._carried = bytearray(self._profile.max_size)
        carried = memoryview(self._carried)[:count]
        carried[:] = self._window.buffer[rest : self._window.used]
        self._window = Window((yield self._take_window()))
        self._window.buffer[:count] = carried
        self._window.used = count
        return 0


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns, before.st_ino, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ino,
        after.st_ctime_ns,
    )
