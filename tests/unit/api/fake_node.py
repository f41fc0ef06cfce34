"""A node in memory that does what it is told, for tests of what stands in front of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from meshnode.config import Config
from meshnode.dht.peer_id import PeerId
from meshnode.errors import MeshError, NotFoundError
from meshnode.node.api.face import ProgressSink
from meshnode.node.content import DirectoryManifest, Entry, FileManifest, Link
from meshnode.node.transfer import (
    Failure,
    GetOptions,
    GetReport,
    Outcome,
    Progress,
    PutOptions,
    PutReport,
    Source,
    SourceReport,
    Started,
    StreamSource,
)

LINK = Link(b"\x11" * 32, b"\x22" * 32)
OTHER_LINK = Link(b"\x33" * 32)
PEER = PeerId.from_ed25519(b"\x44" * 32)
HOSTILE_NAME = b"evil\x1b[31m\nname"


@dataclass
class Told:
    """A report that is just JSON."""

    facts: dict[str, object]

    def to_json(self) -> dict[str, object]:
        return self.facts


@dataclass
class FakeNode:
    """Every attribute can be set by a test before it asks."""

    config: Config
    outcome: Outcome = "stored"
    failures: tuple[Failure, ...] = ()
    error: Exception | None = None
    """Raised by every operation, after `events`."""
    events: Sequence[Progress | Started] = ()
    hang: bool = False
    """Operations never end by themselves."""
    pieces: Sequence[bytes] = (b"some ", b"bytes")
    break_after: int | None = None
    """After so many pieces `stream` raises `error`."""
    ready: trio.Event | None = None
    read_gate: trio.Event | None = None
    """A put of a stream waits for it before it reads."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    entered: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    cleaned_up: bool = False
    received: bytearray = field(default_factory=bytearray)
    pieces_given: int = 0
    stop_requested: trio.Event = field(default_factory=trio.Event)
    peer_facts: Sequence[dict[str, object]] = ()
    catalogue_facts: Sequence[dict[str, object]] = ()
    transfer_facts: Sequence[dict[str, object]] = ()
    found: FileManifest | DirectoryManifest | None = None

    async def _work(self, progress: ProgressSink | None = None) -> None:
        self.entered.set()
        try:
            for event in self.events:
                if progress is not None:
                    progress(event)
                await trio.lowlevel.checkpoint()
            if self.hang:
                await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.set()
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.cleaned_up = True
            raise
        if self.error is not None and self.break_after is None:
            raise self.error

    async def put_all(
        self, sources: Sequence[Source], options: PutOptions, progress: ProgressSink
    ) -> PutReport:
        self.calls.append(("put", tuple(sources), options))
        reports = []
        for source in sources:
            name = source.name
            if isinstance(source, StreamSource):
                self.entered.set()
                if self.read_gate is not None:
                    await self.read_gate.wait()
                if self.error is None:
                    async for piece in source.chunks:
                        self.received += piece
            reports.append(self._source_report(name))
        await self._work(progress)
        return PutReport(tuple(reports))

    def _source_report(self, name: str) -> SourceReport:
        if self.outcome == "failed":
            return SourceReport(
                name, "file", "failed", None, error=f"{name} is broken.", hint="Mend it."
            )
        return SourceReport(
            name,
            "file",
            self.outcome,
            LINK,
            size=1234,
            files=1,
            chunks=2,
            new_chunks=1,
            wanted_copies=3,
            copies=3 if self.outcome == "stored" else 1,
            peers=(PEER,),
            zones=("attic", "cellar"),
            survives_nodes=2 if self.outcome == "stored" else 0,
            survives_zones=1,
            seconds=0.5,
            failures=self.failures,
        )

    async def get(
        self, link: Link, destination: Path, options: GetOptions, progress: ProgressSink
    ) -> GetReport:
        self.calls.append(("get", link, destination, options))
        await self._work(progress)
        return GetReport(link, destination, "file", 1234, 1, 2, 0, {PEER: 1234}, seconds=0.5)

    @asynccontextmanager
    async def stream(
        self, link: Link, path: bytes | None = None, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.calls.append(("stream", link, path, offset, length))
        yield self._give(offset)

    async def _give(self, offset: int) -> AsyncIterator[bytes]:
        await self._work()
        for number, piece in enumerate(self.pieces):
            if offset >= len(piece):
                offset -= len(piece)
                continue
            if number == self.break_after and self.error is not None:
                raise self.error
            await trio.lowlevel.checkpoint()
            self.pieces_given += 1
            yield piece[offset:]
            offset = 0

    async def manifest(self, link: Link) -> FileManifest | DirectoryManifest:
        self.calls.append(("manifest", link))
        await self._work()
        if self.found is None:
            raise NotFoundError("Nobody has it.", hint="Try later.")
        return self.found

    async def catalogue(self) -> list[Told]:
        await self._work()
        return [Told(facts) for facts in self.catalogue_facts]

    async def remove(self, link: Link) -> Told:
        self.calls.append(("remove", link))
        if link == OTHER_LINK:
            raise NotFoundError("This link was not put on this node.", hint="See `meshnode ls`.")
        await self._work()
        return Told({"chunks": 2, "removed_here": 1, "removed_bytes": 99})

    async def transfers(self, root: bytes | None, count: int) -> Sequence[Told]:
        self.calls.append(("transfers", root, count))
        await self._work()
        return [Told(facts) for facts in self.transfer_facts][:count]

    async def status(self) -> Told:
        await self._work()
        return Told(
            {
                "name": "fake",
                "zone": "attic",
                "peer_id": str(PEER),
                "mesh": {"name": "testers", "id": "00" * 16, "open": False},
                "addresses": [f"/ip4/127.0.0.1/tcp/4710/p2p/{PEER}"],
                "version": "0",
                "pid": 4242,
                "uptime": 61.0,
                "ready": True,
                "connected_peers": 1,
                "known_peers": 2,
                "store": {"chunks": 3, "stored_bytes": 5000, "available_bytes": 10**9},
            }
        )

    async def peers(self) -> list[Told]:
        await self._work()
        return [Told(facts) for facts in self.peer_facts]

    async def wait_ready(self) -> None:
        if self.ready is not None:
            await self.ready.wait()

    def request_stop(self) -> None:
        self.stop_requested.set()

    async def wait_stop_requested(self) -> None:
        await self.stop_requested.wait()


def folder_manifest(*entries: Entry) -> DirectoryManifest:
    """A folder called "folder"; entries in manifest order."""
    return DirectoryManifest(b"folder", (), tuple(sorted(entries, key=lambda e: e.path)))


def file_entry(path: bytes, size: int = 3) -> Entry:
    return Entry(path, "file", 0o640, 1_700_000_000_000_000_000, size, b"\0" * 32, "text/plain")


RaisesOnUse = Callable[[], MeshError]
