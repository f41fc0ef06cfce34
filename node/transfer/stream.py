"""A file as bytes in order, while its chunks arrive in any order: for `cat` and HTTP.

Chunks are fetched some way ahead of the reader, nearest first. A reader that moves elsewhere has
what it does not want any more cancelled; what lies in its new reach and is here already stays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from blake3 import blake3

from ...errors import IntegrityError, UsageError
from ..content import ChunkRef
from .download import Fetcher
from .driver import Driver
from .failures import task_group
from .plan import ReadPlan

READ_AHEAD_BYTES = 32 << 20


@dataclass(slots=True)
class _Run:
    """Neighbouring parts of the same chunk, fetched once (a file of zeros is one chunk often)."""

    ref: ChunkRef
    start: int
    """Where its bytes begin, counted from the first byte of the plan."""
    parts: list[tuple[int, int]]
    length: int = 0


@asynccontextmanager
async def open_stream(
    fetcher: Fetcher, plan: Callable[[], Awaitable[ReadPlan]]
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Begin fetching what `plan` says, and iterate over its bytes in order."""
    decided = await plan()
    async with _reading(fetcher, decided, open_ended=False) as reader:
        yield _checked(reader, decided.digest)


@asynccontextmanager
async def open_reader(
    fetcher: Fetcher, plan: Callable[[], Awaitable[ReadPlan]]
) -> AsyncGenerator[SeekableReader]:
    """The same for somebody who jumps about in it."""
    async with _reading(fetcher, await plan(), open_ended=True) as reader:
        yield reader


@asynccontextmanager
async def _reading(
    fetcher: Fetcher, plan: ReadPlan, *, open_ended: bool
) -> AsyncGenerator[SeekableReader]:
    reader = SeekableReader(plan)
    refs = [run.ref for run in reader.runs]
    async with (
        fetcher.opened(
            refs, lambda _, plain: bytes(plain), deliver=reader.deliver, open_ended=open_ended
        ) as driver,
        task_group() as tasks,
    ):
        reader.follow(driver)

        async def fetch() -> None:
            fetcher.check(await driver.run(), refs)

        tasks.start_soon(fetch)
        yield reader
        tasks.cancel_scope.cancel()


class SeekableReader:
    """The bytes of a plan, from any place. One reader at a time; every chunk is verified, but the
    digest of the whole file is not looked at."""

    def __init__(self, plan: ReadPlan) -> None:
        self.size = plan.total_bytes
        self.runs = _runs(plan)
        self._starts = [run.start for run in self.runs]
        self._at = 0
        self._arrived: dict[int, bytes] = {}
        self._came = bytearray(len(self.runs))
        """Chunks that came at some time; those not in `_arrived` were dropped since."""
        self._reach = range(0)
        self._more = trio.Event()
        self._driver: Driver | None = None

    @property
    def position(self) -> int:
        """Of the byte that is read next."""
        return self._at

    def seek(self, position: int) -> None:
        """Read on at `position`; at or beyond the end nothing comes.

        Raises:
            UsageError: it is negative.
        """
        if position < 0:
            raise UsageError(f"There is no byte {position} in a file.")
        self._at = min(position, self.size)
        self._move()

    async def read(self) -> bytes:
        """The next bytes, some at least, out of one chunk; b"" at the end."""
        if self._at >= self.size:
            return b""
        index = bisect_right(self._starts, self._at) - 1
        while (plain := self._arrived.get(index)) is None:
            self._more = trio.Event()
            await self._more.wait()
        run, skip = self.runs[index], self._at - self.runs[index].start
        for offset, length in run.parts:
            if skip < length:
                self._at += length - skip
                whole = skip == 0 and length == len(plain)
                if self._at == run.start + run.length:
                    self._move()
                return plain if whole else plain[offset + skip : offset + length]
            skip -= length
        raise AssertionError("parts of a run add up to its length")

    # --- fetching ---

    def follow(self, driver: Driver) -> None:
        """Have `driver` fetch what is in reach, now and after every move."""
        self._driver = driver
        self._move()

    def deliver(self, index: int, plain: object) -> None:
        """A chunk came."""
        assert isinstance(plain, bytes)
        self._came[index] = 1
        if index in self._reach:
            self._arrived[index] = plain
            self._more.set()

    def _move(self) -> None:
        reach = self._in_reach()
        if self._driver is None or reach == self._reach:
            return
        self._reach = reach
        for index in [index for index in self._arrived if index not in reach]:
            del self._arrived[index]
        again = [index for index in reach if self._came[index] and index not in self._arrived]
        self._driver.move(reach.start, reach.stop, again)

    def _in_reach(self) -> range:
        """Chunks from the one read now, up to `READ_AHEAD_BYTES`."""
        if self._at >= self.size:
            return range(len(self.runs), len(self.runs))
        first = stop = bisect_right(self._starts, self._at) - 1
        ahead = 0
        while stop < len(self.runs):
            ahead += self.runs[stop].ref.plain_size
            if stop > first and ahead > READ_AHEAD_BYTES:
                break
            stop += 1
        return range(first, stop)


async def _checked(reader: SeekableReader, digest: bytes | None) -> AsyncIterator[bytes]:
    """All bytes; `digest` is that of the whole, None when only a part is read."""
    hasher = blake3()
    while part := await reader.read():
        if digest is not None:
            hasher.update(part)
        yield part
    if digest is not None and hasher.digest() != digest:
        raise IntegrityError(
            "The whole does not have the digest its manifest says, although every chunk does: "
            "the manifest is wrong.",
            hint="Ask whoever made the link to put the file again.",
        )


def _runs(plan: ReadPlan) -> list[_Run]:
    runs: list[_Run] = []
    at = 0
    for ref, offset, length in plan.parts:
        if not length:
            continue
        if not runs or runs[-1].ref != ref:
            runs.append(_Run(ref, at, []))
        runs[-1].parts.append((offset, length))
        runs[-1].length += length
        at += length
    return runs
