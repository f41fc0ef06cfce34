"""A file as bytes in order, while its chunks arrive in any order: for `cat` and for HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from blake3 import blake3

from ...errors import IntegrityError
from ..content import ChunkRef
from .budget import ByteBudget
from .download import Fetcher
from .failures import task_group
from .plan import ReadPlan

READ_AHEAD_BYTES = 32 << 20


@dataclass(slots=True)
class _Run:
    """Neighbouring parts of the same chunk, fetched once (a file of zeros is one chunk often)."""

    ref: ChunkRef
    parts: list[tuple[int, int]]


@asynccontextmanager
async def open_stream(
    fetcher: Fetcher, plan: Callable[[], Awaitable[ReadPlan]]
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Begin fetching what `plan` says, and iterate over its bytes in order."""
    reader = _Reader(fetcher, await plan())
    async with task_group() as tasks:
        tasks.start_soon(reader.fetch)
        yield reader.bytes_in_order()
        tasks.cancel_scope.cancel()


class _Reader:
    """Chunks come in out of order and wait here for their turn, bounded in bytes."""

    def __init__(self, fetcher: Fetcher, plan: ReadPlan) -> None:
        self._fetcher = fetcher
        self._digest = plan.digest
        self._runs = _runs(plan)
        self._budget = ByteBudget(READ_AHEAD_BYTES)
        self._arrived: dict[int, bytes] = {}
        self._more = trio.Event()

    async def fetch(self) -> None:
        await self._fetcher.fetch(
            [run.ref for run in self._runs],
            lambda _, plain: plain,
            deliver=self._deliver,
            admit=self._admit,
        )

    async def _admit(self, index: int) -> None:
        await self._budget.acquire(self._runs[index].ref.plain_size)

    def _deliver(self, index: int, plain: object) -> None:
        assert isinstance(plain, bytes)
        self._arrived[index] = plain
        self._more.set()

    async def bytes_in_order(self) -> AsyncIterator[bytes]:
        hasher = blake3()
        for index, run in enumerate(self._runs):
            while index not in self._arrived:
                self._more = trio.Event()
                await self._more.wait()
            plain = self._arrived.pop(index)
            for offset, length in run.parts:
                whole = offset == 0 and length == len(plain)
                part = plain if whole else plain[offset : offset + length]
                if self._digest is not None:
                    hasher.update(part)
                yield part
            self._budget.release(run.ref.plain_size)
        if self._digest is not None and hasher.digest() != self._digest:
            raise IntegrityError(
                "The whole does not have the digest its manifest says, although every chunk does: "
                "the manifest is wrong.",
                hint="Ask whoever made the link to put the file again.",
            )


def _runs(plan: ReadPlan) -> list[_Run]:
    runs: list[_Run] = []
    for ref, offset, length in plan.parts:
        if not runs or runs[-1].ref != ref:
            runs.append(_Run(ref, []))
        runs[-1].parts.append((offset, length))
    return runs
