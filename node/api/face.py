"""What the API asks of a node: the part of `Node` that clients can reach."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from ...config import Config
from ..content import DirectoryManifest, FileManifest, Link
from ..transfer import GetOptions, PutOptions, Source, TransferEvent


class Report(Protocol):
    """What an operation found out, as it goes to a client."""

    def to_json(self) -> dict[str, object]: ...


class ProgressSink(Protocol):
    """Told how a transfer gets on; never blocks."""

    def __call__(self, event: TransferEvent, /) -> None: ...


class Transfers(Protocol):
    """What remembers transfers: a running node, or only the database of one."""

    async def transfers(self, root: bytes | None, count: int) -> Sequence[Report]:
        """The last ones, newest first; with `root` only those of the link it names."""
        ...


class NodeFace(Transfers, Protocol):
    """A running node."""

    @property
    def config(self) -> Config: ...

    async def wait_ready(self) -> None:
        """Until the node listens, has found the mesh and accepts requests."""
        ...

    async def wait_stop_requested(self) -> None:
        """Until somebody called `request_stop`."""
        ...

    async def put_all(
        self, sources: Sequence[Source], options: PutOptions, progress: ProgressSink
    ) -> Report:
        """Put every source; the report has one entry per source, failed ones too."""
        ...

    async def get(
        self, link: Link, destination: Path, options: GetOptions, progress: ProgressSink
    ) -> Report: ...

    def stream(
        self, link: Link, path: bytes | None = None, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of one file in order; leaving the block ends the fetching."""
        ...

    async def manifest(self, link: Link) -> FileManifest | DirectoryManifest: ...

    async def catalogue(self) -> Sequence[Report]:
        """What was put on this node, newest first."""
        ...

    async def remove(self, link: Link) -> Report: ...

    async def status(self) -> Report: ...

    async def peers(self) -> Sequence[Report]: ...

    def request_stop(self) -> None:
        """Ask whoever runs this node to end it; returns at once."""
        ...
