"""Where to cut a file: content-defined (FastCDC), fixed, or at line ends.

A cut depends on nothing but the profile and the bytes from the chunk's start to its maximum size
(or the file's end); one that was found, on nothing but the bytes before it. That is why a cut at
the end of a window is not believed, and why any windowing of a file gives the same chunks.

FastCDC: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data
Deduplication" (USENIX ATC 2016), in the compiled form of the `fastcdc` package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from fastcdc import fastcdc

from ...errors import FormatError, UsageError
from .limits import MAX_PLAIN_BYTES, MAX_PROFILE_CHARS, Buffer

ChunkerKind = Literal["cdc", "fixed", "lines"]
CHUNKER_KINDS: Final[tuple[ChunkerKind, ...]] = get_args(ChunkerKind)

DEFAULT_TARGET: Final = 1024 * 1024
MIN_TARGET: Final = 1024
MAX_TARGET: Final = 4 * 1024 * 1024
_MIN_CHUNK: Final = 64  # the smallest minimum FastCDC takes
_LINE_SEARCH_BYTES: Final = 4096

_PROFILE: Final = re.compile(r"(cdc|fixed|lines)((?::[1-9][0-9]{0,8}){1,3}):v1", re.ASCII)


@dataclass(frozen=True, slots=True)
class ChunkerProfile:
    """How a file is cut. `str()` is the form kept in manifests, `parse()` its inverse.

    `min_size <= target <= max_size`, in bytes. Only the last chunk of a file may be shorter than
    `min_size`, and no chunk is longer than `max_size`.
    """

    kind: ChunkerKind
    min_size: int
    target: int
    max_size: int

    def __post_init__(self) -> None:
        if not MIN_TARGET <= self.target <= MAX_TARGET:
            raise UsageError(
                f"A chunk size of {self.target} bytes is out of range.",
                hint=f"Choose between {MIN_TARGET} and {MAX_TARGET} bytes.",
            )
        ordered = 0 < self.min_size <= self.target <= self.max_size <= MAX_PLAIN_BYTES
        if not ordered or (self.kind == "cdc" and self.min_size < _MIN_CHUNK):
            raise UsageError(
                f"Chunk sizes {self.min_size}, {self.target}, {self.max_size} are not a sound "
                f"minimum, target and maximum (at most {MAX_PLAIN_BYTES})."
            )

    @classmethod
    def named(cls, kind: str, target: int = DEFAULT_TARGET) -> ChunkerProfile:
        """The profile of this name for chunks of about `target` bytes.

        Raises:
            UsageError: no such chunker, or a target out of range.
        """
        largest = min(4 * target, MAX_PLAIN_BYTES)
        if kind == "cdc":
            return cls("cdc", max(target // 4, _MIN_CHUNK), target, largest)
        if kind == "lines":
            return cls("lines", 1, target, largest)
        if kind == "fixed":
            return cls("fixed", target, target, target)
        raise UsageError(
            f"There is no chunker {kind[:40]!r}.", hint=f"Choose one of {', '.join(CHUNKER_KINDS)}."
        )

    def __str__(self) -> str:
        if self.kind == "cdc":
            return f"cdc:{self.min_size}:{self.target}:{self.max_size}:v1"
        if self.kind == "lines":
            return f"lines:{self.target}:{self.max_size}:v1"
        return f"fixed:{self.target}:v1"

    @classmethod
    def parse(cls, text: str) -> ChunkerProfile:
        """Parse the form kept in manifests.

        Raises:
            FormatError: not a profile this version knows, or not in its one spelling.
        """
        match = _PROFILE.fullmatch(text) if len(text) <= MAX_PROFILE_CHARS else None
        if match is None:
            raise FormatError(f"{text[:MAX_PROFILE_CHARS]!r} is not a chunker profile.")
        kind = cast(ChunkerKind, match[1])
        sizes = [int(part) for part in match[2].split(":")[1:]]
        try:
            match (kind, sizes):
                case ("cdc", [least, target, most]):
                    return cls(kind, least, target, most)
                case ("lines", [target, most]):
                    return cls(kind, 1, target, most)
                case ("fixed", [target]):
                    return cls(kind, target, target, target)
        except UsageError as error:
            raise FormatError(f"{text!r} is not a chunker profile: {error.message}") from error
        raise FormatError(f"{text!r} is not a chunker profile: it has {len(sizes)} sizes.")


def cut(profile: ChunkerProfile, window: Buffer, final: bool) -> list[int]:
    """End offsets of the chunks that begin at the window's start and are certain.

    A chunk is certain when it ends before the window does, when the window holds
    `profile.max_size` bytes from its start, or when the window ends with the file (`final`): then
    the last offset is the window's end. Call again with a window that begins at the last offset.
    What no cut was found in is searched again then: a window several times as long as
    `max_size` wastes little.

    No copy is made. FastCDC runs at about 1.3 GB/s and keeps the GIL while it seeks one cut
    (at most `max_size` bytes: some milliseconds).
    """
    view = memoryview(window)
    if view.ndim != 1 or view.itemsize != 1:
        view = view.cast("B")
    size = len(view)
    ends: list[int] = []
    start = 0
    for end in _CUTTERS[profile.kind](profile, view):
        if end == size and not final and size - start < profile.max_size:
            break
        ends.append(end)
        start = end
    return ends


def _cut_cdc(profile: ChunkerProfile, view: memoryview) -> Iterator[int]:
    chunks = fastcdc(view, profile.min_size, profile.target, profile.max_size)
    return (chunk.offset + chunk.length for chunk in chunks)


def _cut_fixed(profile: ChunkerProfile, view: memoryview) -> Iterator[int]:
    end = 0
    while end < len(view):
        end = min(end + profile.target, len(view))
        yield end


def _cut_lines(profile: ChunkerProfile, view: memoryview) -> Iterator[int]:
    """At the last line end up to the target; else the next one; else at the maximum."""
    start, size = 0, len(view)
    while start < size:
        soft, hard = min(start + profile.target, size), min(start + profile.max_size, size)
        if soft == size and size - start < profile.max_size:
            # Only at the end of the file: what follows the last line end belongs to no later line.
            start = size
        else:
            start = _last_line_end(view, start, soft) or _next_line_end(view, soft, hard) or hard
        yield start


def _last_line_end(view: memoryview, start: int, end: int) -> int:
    """Offset behind the last newline in `view[start:end]`, 0 when there is none."""
    step = _LINE_SEARCH_BYTES
    while end > start:
        begin = max(start, end - step)
        found = bytes(view[begin:end]).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end, step = begin, step * 2
    return 0


def _next_line_end(view: memoryview, start: int, end: int) -> int:
    """Offset behind the first newline in `view[start:end]`, 0 when there is none."""
    step = _LINE_SEARCH_BYTES
    while start < end:
        stop = min(end, start + step)
        found = bytes(view[start:stop]).find(b"\n")
        if found >= 0:
            return start + found + 1
        start, step = stop, step * 2
    return 0


_CUTTERS: Final[dict[str, Callable[[ChunkerProfile, memoryview], Iterator[int]]]] = {
    "cdc": _cut_cdc,
    "fixed": _cut_fixed,
    "lines": _cut_lines,
}
