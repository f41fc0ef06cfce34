"""The disk as a crash leaves it: every prefix of what a store wrote, cut at every entry boundary
and inside entries, under an index of that moment, an older one, a damaged one, or none."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from blake3 import blake3
from meshnode.node.store import Digest, Store, open_store
from meshnode.node.store.files import OsFiles
from meshnode.node.store.frames import frame_bytes

SEGMENT_BYTES = 2600


@dataclass(frozen=True)
class FileEvent:
    """One call that changed a segment file."""

    what: str
    """create, write, truncate or unlink."""
    name: str
    offset: int = 0
    data: bytes = b""


@dataclass
class RecordingFiles(OsFiles):
    events: list[FileEvent] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)

    def open(self, path: Path, *, create: bool = False) -> int:
        fd = super().open(path, create=create)
        self._names[fd] = path.name
        if create:
            self.events.append(FileEvent("create", path.name))
        return fd

    def write(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        self.events.append(FileEvent("write", self._names[fd], offset, b"".join(buffers)))
        return super().write(fd, buffers, offset)

    def truncate(self, fd: int, size: int) -> None:
        self.events.append(FileEvent("truncate", self._names[fd], size))
        super().truncate(fd, size)

    def unlink(self, path: Path) -> None:
        self.events.append(FileEvent("unlink", path.name))
        super().unlink(path)


def segments_after(events: Sequence[FileEvent]) -> dict[str, bytearray]:
    """Content of every segment file once `events` have happened."""
    files: dict[str, bytearray] = {}
    for event in events:
        if event.what == "create":
            files[event.name] = bytearray()
        elif event.what == "unlink":
            del files[event.name]
        elif event.what == "truncate":
            del files[event.name][event.offset :]
        else:
            content = files[event.name]
            content[event.offset : event.offset + len(event.data)] = event.data
    return files


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Memory, where there is any: the syncs of hundreds of laid-out stores prove nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


IndexFiles = dict[str, bytes]


@dataclass(frozen=True)
class Step:
    """One acknowledged call: what it put or deleted, and the disk right after."""

    put: frozenset[Digest]
    deleted: frozenset[Digest]
    events: int
    index: IndexFiles


@dataclass(frozen=True)
class History:
    content: dict[Digest, bytes]
    format_file: bytes
    events: list[FileEvent]
    steps: list[Step]

    def before(self, event: int) -> list[Step]:
        """The steps acknowledged before this event happened."""
        return [step for step in self.steps if step.events <= event]

    def held_after(self, steps: Sequence[Step]) -> set[Digest]:
        held: set[Digest] = set()
        for step in steps:
            held |= step.put
            held -= step.deleted
        return held


@pytest.fixture
async def history(scratch: Path) -> History:
    """Puts of one and of many chunks, deletes, puts of the deleted, over several segments."""
    rng = random.Random(2024)
    path, files = scratch / "original", RecordingFiles()
    content: dict[Digest, bytes] = {}
    steps: list[Step] = []

    def fresh(count: int) -> list[tuple[Digest, bytes]]:
        made = [rng.randbytes(rng.choice([0, 1, 8, 97, 400, 900])) for _ in range(count)]
        chunks = [(blake3(data).digest(), data) for data in made]
        content.update(chunks)
        return chunks

    async with open_store(
        path, quota=None, min_free=0, segment_bytes=SEGMENT_BYTES, files=files
    ) as store:
        steps.append(Step(frozenset(), frozenset(), len(files.events), index_files(path)))
        for turn in range(18):
            put: list[tuple[Digest, bytes]] = []
            deleted: list[Digest] = []
            held = {digest async for digest, _ in store.chunks.list()}
            if turn % 4 == 3:
                # Mostly the oldest, so that whole segments die.
                by_age = [digest for digest in content if digest in held]
                deleted = by_age[: len(by_age) * 2 // 3] + by_age[-1:]
                await store.chunks.delete(deleted)
            elif turn % 7 == 5:
                gone = sorted(set(content) - held)
                put = [(digest, content[digest]) for digest in gone[:4]]
                await store.chunks.put(put)
            else:
                put = fresh(rng.choice([1, 1, 2, 6]))
                await store.chunks.put(put)
            steps.append(
                Step(
                    frozenset(digest for digest, _ in put),
                    frozenset(deleted),
                    len(files.events),
                    index_files(path),
                )
            )
    recorded = History(content, (path / "format").read_bytes(), files.events, steps)
    kinds = {event.what for event in recorded.events}
    assert {"create", "write", "unlink"} <= kinds, "the series must cover removal of segments"
    return recorded


def index_files(path: Path) -> IndexFiles:
    names = ("index.db", "index.db-wal")
    return {name: (path / name).read_bytes() for name in names if (path / name).exists()}


def remove_index(path: Path) -> None:
    for file in path.glob("index.db*"):
        file.unlink()


def cuts_of(event: FileEvent, rng: random.Random) -> Iterator[int]:
    """How many bytes of a write reached the disk: none, up to each entry, and some inside."""
    at = 0
    while at < len(event.data):
        yield at
        length = int.from_bytes(event.data[at + 8 : at + 12], "little") if event.offset else 0
        frame = frame_bytes(length)
        yield at + rng.randrange(1, frame)
        at += frame
    yield len(event.data)


def damaged(index: IndexFiles, rng: random.Random) -> IndexFiles:
    """A truncated or overwritten database; its log is lost with it."""
    raw = bytearray(index["index.db"])
    if not raw or rng.random() < 0.5:
        return {"index.db": bytes(raw[: rng.randrange(len(raw) + 1)])}
    at = rng.randrange(len(raw))
    raw[at : at + 2000] = rng.randbytes(len(raw[at : at + 2000]))
    return {"index.db": bytes(raw)}


def index_variants(steps: Sequence[Step], rng: random.Random) -> Iterator[IndexFiles]:
    """Now and then the newest index, and one that is older, gone, damaged, or has its log cut."""
    newest = steps[-1].index
    if rng.random() < 0.5:
        yield newest
    choice = rng.randrange(4)
    if choice == 0:
        yield rng.choice(steps).index
    elif choice == 1:
        yield {}
    elif choice == 2:
        yield damaged(newest, rng)
    else:
        log = newest.get("index.db-wal", b"")
        yield {**newest, "index.db-wal": log[: rng.randrange(len(log) + 1)]}


def lay_out(
    path: Path, history: History, segments: dict[str, bytearray], index: IndexFiles
) -> None:
    (path / "segments").mkdir(parents=True)
    (path / "format").write_bytes(history.format_file)
    for name, content in segments.items():
        (path / "segments" / name).write_bytes(content)
    for name, raw in index.items():
        (path / name).write_bytes(raw)


async def check(store: Store, history: History, acknowledged: Sequence[Step], event: int) -> None:
    """Everything acknowledged is there, nothing acknowledged as deleted is, all of it is right."""
    must = history.held_after(acknowledged)
    under_way = next((step for step in history.steps if step.events > event), None)
    may: set[Digest] = set()
    if under_way is not None:
        must -= under_way.deleted
        may = set(under_way.put) | set(under_way.deleted)
    listed = {digest async for digest, _ in store.chunks.list()}
    assert must <= listed
    assert listed - must <= may
    for digest in listed:
        assert await store.chunks.get(digest) == history.content[digest]


async def check_still_works(path: Path, history: History) -> None:
    """New puts after the crash are taken and outlive another opening, without an index too."""
    new = [(blake3(data).digest(), data) for data in (b"after the crash", b"more" * 500)]
    async with open_store(path, quota=None, min_free=0, segment_bytes=SEGMENT_BYTES) as store:
        before = {digest async for digest, _ in store.chunks.list()}
        await store.chunks.put(new)
    remove_index(path)
    async with open_store(path, quota=None, min_free=0, segment_bytes=SEGMENT_BYTES) as store:
        listed = {digest async for digest, _ in store.chunks.list()}
        assert listed == before | {digest for digest, _ in new}
        for digest, data in new:
            assert await store.chunks.get(digest) == data


async def test_every_prefix_of_the_writes_opens_with_all_that_was_acknowledged(history, scratch):
    rng = random.Random(99)
    cases = 0
    for position, event in enumerate(history.events):
        acknowledged = history.before(position)
        before = segments_after(history.events[:position])
        for cut in cuts_of(event, rng) if event.what == "write" else [0]:
            segments = {name: bytearray(content) for name, content in before.items()}
            if event.what == "write":
                content = segments[event.name]
                content[event.offset : event.offset + cut] = event.data[:cut]
            for index in index_variants(acknowledged, rng):
                cases += 1
                path = scratch / f"case-{cases}"
                lay_out(path, history, segments, index)
                async with open_store(
                    path, quota=None, min_free=0, segment_bytes=SEGMENT_BYTES
                ) as store:
                    await check(store, history, acknowledged, position)
                if cases % 10 == 0:
                    await check_still_works(path, history)
    assert cases > 200


async def test_pages_of_the_last_write_that_were_lost_cost_only_what_was_not_acknowledged(
    history, scratch
):
    rng = random.Random(5)
    writes = [n for n, event in enumerate(history.events) if event.what == "write"]
    for case, position in enumerate(writes):
        event = history.events[position]
        acknowledged = history.before(position)
        segments = segments_after(history.events[: position + 1])
        # The size of the file is on disk, some of the pages are not.
        start = event.offset + rng.randrange(len(event.data))
        stop = min(start + rng.randrange(1, 600), event.offset + len(event.data))
        segments[event.name][start:stop] = bytes(stop - start)
        path = scratch / f"case-{case}"
        lay_out(path, history, segments, rng.choice([acknowledged[-1].index, {}]))
        async with open_store(path, quota=None, min_free=0, segment_bytes=SEGMENT_BYTES) as store:
            await check(store, history, acknowledged, position)
        await check_still_works(path, history)
