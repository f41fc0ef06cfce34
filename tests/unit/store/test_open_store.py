"""Opening and closing a data directory: lock, format, damaged or missing index, golden data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from meshnode.errors import IntegrityError, StoreError, StoreLockedError
from meshnode.node.store import open_store
from meshnode.node.store.files import OsFiles
from meshnode.node.store.layout import FORMAT, Layout, prepare
from structlog.testing import capture_logs

GOLDEN = Path(__file__).parent / "golden"
CHUNKS = [(blake3(data).digest(), data) for data in (b"a" * 500, b"b" * 500, b"c" * 500, b"d")]
DIGESTS = [digest for digest, _ in CHUNKS]


def opened(path, **options):
    settings = {"quota": None, "min_free": 0, "segment_bytes": 1200}
    return open_store(path, **(settings | options))


@pytest.fixture
async def filled(tmp_path):
    """A closed store with four chunks, one of them deleted."""
    path = tmp_path / "data"
    async with opened(path) as store:
        await store.chunks.put(CHUNKS)
        await store.chunks.delete([DIGESTS[1]])
    return path


async def expect_filled(store):
    assert await store.chunks.has(DIGESTS) == [True, False, True, True]
    for digest, data in (CHUNKS[0], CHUNKS[2], CHUNKS[3]):
        assert await store.chunks.get(digest) == data
    assert (await store.chunks.stats()).chunks == 3


async def test_chunks_outlive_the_process_that_put_them(filled):
    with capture_logs() as logs:
        async with opened(filled) as store:
            await expect_filled(store)
    assert logs == [], "a store closed in order has nothing to recover"


# --- one process ------------------------------------------------------------------------------


async def test_a_second_opening_is_refused_and_told_the_pid(tmp_path):
    async with opened(tmp_path / "data"):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()}") as caught:
            async with opened(tmp_path / "data"):
                pass
        assert "meshnode stop" in caught.value.hint
    async with opened(tmp_path / "data"):
        pass


async def test_the_lock_file_may_lie_elsewhere(tmp_path):
    lock = tmp_path / "node.lock"
    async with opened(tmp_path / "data", lock_path=lock):
        assert lock.read_text().strip() == str(os.getpid())
        assert not (tmp_path / "data" / "lock").exists()
        with pytest.raises(StoreLockedError):
            async with opened(tmp_path / "other", lock_path=lock):
                pass
    assert lock.read_text() == ""


async def test_the_lock_of_a_killed_process_does_not_last(tmp_path):
    script = (
        "import sys, os, trio, pathlib\n"
        "from meshnode.node.store import open_store\n"
        "async def main():\n"
        "    async with open_store(pathlib.Path(sys.argv[1]), quota=None, min_free=0):\n"
        "        os.kill(os.getpid(), 9)\n"
        "trio.run(main)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "data")]
    done = await trio.run_process(command, check=False)
    assert done.returncode == -9
    assert (tmp_path / "data/lock").read_text().strip().isdigit()
    async with opened(tmp_path / "data"):
        pass


# --- format -----------------------------------------------------------------------------------


async def test_a_newer_format_is_refused_and_left_alone(filled):
    newer = {"format": FORMAT + 1, "store": "00" * 16}
    (filled / "format").write_text(json.dumps(newer))
    before = {file: file.read_bytes() for file in filled.rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match=f"format {FORMAT + 1}") as caught:
        async with opened(filled):
            pass
    assert "newer meshnode" in caught.value.hint
    assert {file: file.read_bytes() for file in filled.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 500, b"{}", b'{"format": true, "store": ""}', b"7"]
)
async def test_a_format_file_that_is_none_is_an_error_with_a_way_out(filled, content):
    (filled / "format").write_bytes(content)
    with pytest.raises(StoreError, match="not a meshnode format file"):
        async with opened(filled):
            pass
    (filled / "format").unlink()
    async with opened(filled) as store:
        await expect_filled(store)


def test_an_older_format_is_migrated_step_by_step(tmp_path):
    layout, files = Layout(tmp_path / "data"), OsFiles()
    store_id = prepare(layout, files, current=1)
    done = []
    migrations = {number: lambda path, number=number: done.append(number) for number in (1, 2)}
    assert prepare(layout, files, current=3, migrations=migrations) == store_id
    assert done == [1, 2]
    assert json.loads(layout.format_file.read_text())["format"] == 3
    prepare(layout, files, current=3, migrations=migrations)
    assert done == [1, 2]


def test_a_migration_that_fails_is_tried_again(tmp_path):
    layout, files = Layout(tmp_path / "data"), OsFiles()
    prepare(layout, files, current=1)
    outcomes = iter([OSError("power cut"), None])

    def migrate(path):
        if (error := next(outcomes)) is not None:
            raise error

    with pytest.raises(OSError, match="power cut"):
        prepare(layout, files, current=2, migrations={1: migrate})
    prepare(layout, files, current=2, migrations={1: migrate})
    assert json.loads(layout.format_file.read_text())["format"] == 2


async def test_a_path_that_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(StoreError, match=str(tmp_path / "data")):
        async with opened(tmp_path / "data"):
            pass


# --- index ------------------------------------------------------------------------------------


def remove(path):
    path.unlink()


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


def not_a_database(path):
    path.write_bytes(b"this is no database" * 1000)


def scribble_over_pages(path):
    raw = bytearray(path.read_bytes())
    raw[4096:-100] = os.urandom(len(raw) - 4196)
    path.write_bytes(raw)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [remove, cut_in_half, not_a_database, scribble_over_pages, empty]
)
async def test_an_index_that_is_lost_or_damaged_is_rebuilt_and_nothing_is_lost(filled, damage):
    damage(filled / "index.db")
    damaged = (filled / "index.db").read_bytes() if damage not in (remove, empty) else None
    with capture_logs() as logs:
        async with opened(filled) as store:
            await expect_filled(store)
    assert {"store_index_rebuilding"} <= {entry["event"] for entry in logs}
    if damaged is not None:
        kept = [file for file in filled.glob("index.db.damaged-*") if file.suffix != ".wal"]
        assert [file.read_bytes() for file in kept] == [damaged]
        assert "store_index_set_aside" in {entry["event"] for entry in logs}
    with capture_logs() as logs:
        async with opened(filled) as store:
            await expect_filled(store)
    assert logs == []


async def test_the_index_of_another_store_is_not_believed(filled, tmp_path):
    async with opened(tmp_path / "other") as store:
        await store.chunks.put([(blake3(b"elsewhere").digest(), b"elsewhere")])
    shutil.copy(tmp_path / "other/index.db", filled / "index.db")
    async with opened(filled) as store:
        await expect_filled(store)
        assert await store.chunks.has([blake3(b"elsewhere").digest()]) == [False]


async def test_a_lost_segment_costs_its_chunks_and_nothing_else(filled):
    first = filled / "segments/00000001.seg"
    first.unlink()
    with capture_logs() as logs:
        async with opened(filled) as store:
            held = await store.chunks.has(DIGESTS)
            assert held == [False, False, True, True]
            await store.chunks.put([CHUNKS[0]])
            assert await store.chunks.get(DIGESTS[0]) == CHUNKS[0][1]
    assert "store_segment_missing" in {entry["event"] for entry in logs}


async def test_a_segment_with_a_damaged_header_still_serves_and_still_rebuilds(filled):
    for segment in (filled / "segments").iterdir():
        raw = bytearray(segment.read_bytes())
        raw[:48] = bytes(48)
        segment.write_bytes(raw)
    (filled / "index.db").unlink()
    async with opened(filled) as store:
        await expect_filled(store)
        await store.chunks.put([CHUNKS[1]])
    async with opened(filled) as store:
        assert await store.chunks.get(DIGESTS[1]) == CHUNKS[1][1]


async def test_a_chunk_that_carries_entries_of_its_own_makes_none_of_them(tmp_path):
    """What a peer chooses as content must not delete or plant anything in a rebuild."""
    async with opened(tmp_path / "attacker") as store:
        await store.chunks.put(CHUNKS)
        await store.chunks.delete(DIGESTS)
        await store.chunks.put(CHUNKS[:2])
        await store.chunks.delete(DIGESTS[:1])
    segments = sorted((tmp_path / "attacker/segments").iterdir())
    carried = b"".join(segment.read_bytes() for segment in segments)
    carrier = (blake3(carried).digest(), carried)
    path = tmp_path / "data"
    async with opened(path) as store:
        await store.chunks.put([CHUNKS[0], carrier])
    first = max((path / "segments").iterdir(), key=lambda file: file.stat().st_size)
    raw = bytearray(first.read_bytes())
    raw[raw.index(carrier[0])] ^= 1
    first.write_bytes(raw)
    (path / "index.db").unlink()
    async with opened(path) as store:
        assert [digest async for digest, _ in store.chunks.list()] == [DIGESTS[0]]


async def test_quarantine_outlives_the_index(filled):
    for segment in (filled / "segments").iterdir():
        raw = segment.read_bytes()
        if CHUNKS[0][1] in raw:
            segment.write_bytes(raw.replace(CHUNKS[0][1], b"A" * 500))
    async with opened(filled) as store:
        with pytest.raises(IntegrityError):
            await store.chunks.get(DIGESTS[0])
    (filled / "index.db").unlink()
    async with opened(filled) as store:
        assert await store.chunks.has(DIGESTS) == [False, False, True, True]


async def test_deleted_chunks_stay_deleted_whatever_segments_are_removed(tmp_path):
    path = tmp_path / "data"
    chunks = [(blake3(data).digest(), data) for data in (bytes([n]) * 300 for n in range(24))]
    async with opened(path) as store:
        for start in range(0, 24, 4):
            await store.chunks.put(chunks[start : start + 4])
            # Of every third group one chunk stays, of the others none.
            old = chunks[max(0, start - 4) : start]
            await store.chunks.delete([digest for digest, _ in old[start % 12 == 0 :]])
        before = [row async for row in store.chunks.list()]
        written = 24 * (300 + 48 + 4)
        assert (await store.chunks.stats()).stored_bytes < written, "dead segments must go"
    (path / "index.db").unlink()
    async with opened(path) as store:
        assert [row async for row in store.chunks.list()] == before


# --- closing ----------------------------------------------------------------------------------


async def test_closing_leaves_no_descriptor_and_no_task_behind(tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))

    async with opened(tmp_path / "warm-up"):
        pass
    tasks = len(trio.lowlevel.current_root_task().child_nurseries)
    before = descriptors()
    for _ in range(3):
        async with opened(tmp_path / "data") as store:
            await store.chunks.put(CHUNKS)
            async with trio.open_nursery() as nursery:
                for digest in DIGESTS:
                    nursery.start_soon(store.chunks.get, digest)
    assert descriptors() == before
    assert len(trio.lowlevel.current_root_task().child_nurseries) == tasks


async def test_closing_waits_for_what_is_under_way_and_refuses_what_comes_later(tmp_path):
    async with trio.open_nursery() as nursery:
        async with opened(tmp_path / "data") as store:
            nursery.start_soon(store.chunks.put, CHUNKS)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StoreError, match="closed"):
            await store.chunks.get(DIGESTS[0])
        with pytest.raises(StoreError, match="closed"):
            await store.key_value("x").get(b"key")
    async with opened(tmp_path / "data") as store:
        assert await store.chunks.has(DIGESTS) == [True] * 4


async def test_an_error_inside_comes_out_as_it_is(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        async with opened(tmp_path / "data"):
            raise KeyError("mine")
    async with opened(tmp_path / "data"):
        pass


# --- golden -----------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
@pytest.mark.parametrize("with_index", [True, False])
async def test_every_format_that_was_ever_written_opens(golden, with_index, tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("make_golden", GOLDEN.parent / "make_golden.py")
    make_golden = module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    path = shutil.copytree(golden, tmp_path / "data")
    if not with_index:
        (path / "index.db").unlink()
    async with opened(path) as store:
        kept = {blake3(data).digest(): data for data in make_golden.KEPT}
        assert dict([row async for row in store.chunks.list()]) == {
            digest: len(data) for digest, data in kept.items()
        }
        for digest, data in kept.items():
            assert await store.chunks.get(digest) == data
        if with_index:
            assert await store.key_value("golden").get(b"key") == b"value"
            assert await store.records.load() == [(1, b"key", b"publisher", b"value", 4e9)]


def test_golden_data_is_never_overwritten(tmp_path):
    script = GOLDEN.parent / "make_golden.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "never made anew" in done.stderr
