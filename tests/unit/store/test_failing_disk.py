"""Disks that fill up, fail, or write less than asked: what is acknowledged is whole and stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from meshnode.errors import IntegrityError, QuotaError, StoreError
from meshnode.node.store import open_store
from meshnode.node.store.files import OsFiles


def chunk_of(data: bytes) -> tuple[bytes, bytes]:
    return blake3(data).digest(), data


@dataclass
class FaultyFiles(OsFiles):
    """Real files, whose next calls of a name fail, after writing a part if it is a write."""

    faults: dict[str, int] = field(default_factory=dict)
    """errno of the next call, by name of the call."""
    sticky: bool = False
    written_first: int = 0
    most_per_write: int | None = None
    free: int | None = None

    def _maybe_fail(self, call: str) -> None:
        code = self.faults.get(call) if self.sticky else self.faults.pop(call, None)
        if code is not None:
            raise OSError(code, os.strerror(code))

    def open(self, path: Path, *, create: bool = False) -> int:
        if create:
            self._maybe_fail("create")
        return super().open(path, create=create)

    def write(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        if "write" in self.faults and self.written_first:
            os.pwrite(fd, b"".join(buffers)[: self.written_first], offset)
        self._maybe_fail("write")
        if self.most_per_write is not None:
            return os.pwrite(fd, b"".join(buffers)[: self.most_per_write], offset)
        return super().write(fd, buffers, offset)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._maybe_fail("read")
        return super().read(fd, length, offset)

    def sync(self, fd: int) -> None:
        self._maybe_fail("sync")
        super().sync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._maybe_fail("truncate")
        super().truncate(fd, size)

    def unlink(self, path: Path) -> None:
        self._maybe_fail("unlink")
        super().unlink(path)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free


OLD, NEW, NEXT = chunk_of(b"old" * 100), chunk_of(b"new" * 100), chunk_of(b"next" * 100)

FAULTS = [
    pytest.param({"write": errno.ENOSPC}, QuotaError, id="disk full"),
    pytest.param({"write": errno.EDQUOT}, QuotaError, id="disk quota"),
    pytest.param({"write": errno.EIO}, StoreError, id="write error"),
    pytest.param({"sync": errno.EIO}, StoreError, id="sync error"),
    pytest.param({"write": errno.EIO, "truncate": errno.EIO}, StoreError, id="cannot undo write"),
    pytest.param({"sync": errno.EIO, "truncate": errno.EIO}, StoreError, id="cannot undo sync"),
]


@pytest.mark.parametrize(("faults", "expected"), FAULTS)
@pytest.mark.parametrize("written_first", [0, 20, 200, 348])
async def test_a_failed_put_is_not_held_and_the_store_goes_on(
    tmp_path, faults, expected, written_first
):
    files = FaultyFiles(written_first=written_first)
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([OLD])
        files.faults.update(faults)
        with pytest.raises(expected, match=r"segments/00000001\.seg"):
            await store.chunks.put([NEW])
        assert await store.chunks.has([OLD[0], NEW[0]]) == [True, False]
        assert await store.chunks.get(OLD[0]) == OLD[1]
        await store.chunks.put([NEXT])
        assert await store.chunks.get(NEXT[0]) == NEXT[1]
        stats = await store.chunks.stats()
        on_disk = sum(file.stat().st_size for file in (tmp_path / "data/segments").iterdir())
        assert (stats.chunks, stats.stored_bytes) == (2, on_disk)
    for index_file in (tmp_path / "data").glob("index.db*"):
        index_file.unlink()
    async with open_store(tmp_path / "data", quota=None, min_free=0) as store:
        assert await store.chunks.get(OLD[0]) == OLD[1]
        assert await store.chunks.get(NEXT[0]) == NEXT[1]


async def test_writes_that_take_only_a_part_are_carried_on(tmp_path):
    files = FaultyFiles(most_per_write=37)
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([OLD, NEW])
        await store.chunks.put([NEXT])
        for digest, data in (OLD, NEW, NEXT):
            assert await store.chunks.get(digest) == data


async def test_a_disk_that_takes_nothing_and_reports_nothing_is_an_error(tmp_path):
    files = FaultyFiles()
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([OLD])
        files.most_per_write = 0
        with pytest.raises(StoreError, match="took nothing"):
            await store.chunks.put([NEW])


async def test_a_full_disk_on_the_first_segment_leaves_a_store_that_opens(tmp_path):
    files = FaultyFiles(faults={"write": errno.ENOSPC}, sticky=True)
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        for _ in range(3):
            with pytest.raises(QuotaError):
                await store.chunks.put([OLD])
        files.sticky = False
        files.faults.clear()
        await store.chunks.put([OLD])
    async with open_store(tmp_path / "data", quota=None, min_free=0) as store:
        assert await store.chunks.get(OLD[0]) == OLD[1]
        assert len(list((tmp_path / "data/segments").iterdir())) == 1


async def test_a_segment_that_could_not_be_made_does_not_stop_removal_of_others(tmp_path):
    files = FaultyFiles(faults={"create": errno.ENOSPC})
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        with pytest.raises(QuotaError):
            await store.chunks.put([OLD])
        await store.chunks.put([OLD])
        await store.chunks.delete([OLD[0]])
        assert (await store.chunks.stats()).stored_bytes == 0
        assert list((tmp_path / "data/segments").iterdir()) == []


async def test_an_unreadable_sector_is_an_error_but_no_reason_to_forget_the_chunk(tmp_path):
    files = FaultyFiles()
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([OLD])
        files.faults["read"] = errno.EIO
        with pytest.raises(StoreError, match=r"00000001\.seg"):
            await store.chunks.get(OLD[0])
        assert await store.chunks.get(OLD[0]) == OLD[1]


async def test_minimum_free_disk_is_kept(tmp_path):
    files = FaultyFiles(free=10_000)
    async with open_store(tmp_path / "data", quota=None, min_free=9_500, files=files) as store:
        assert (await store.chunks.stats()).available_bytes == 500
        await store.chunks.put([OLD])
        with pytest.raises(QuotaError, match="stay free"):
            await store.chunks.put([chunk_of(b"x" * 453)])
        files.free = 9_000
        assert (await store.chunks.stats()).available_bytes == 0
        assert await store.chunks.delete([OLD[0]]) == 1


async def test_a_rotten_chunk_leaves_the_index_also_when_the_disk_takes_no_tombstone(tmp_path):
    files = FaultyFiles()
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([OLD, NEW])
        segment = tmp_path / "data/segments/00000001.seg"
        raw = bytearray(segment.read_bytes())
        raw[48 + 48 + 10] ^= 4
        segment.write_bytes(raw)
        files.faults["write"] = errno.ENOSPC
        with pytest.raises(IntegrityError):
            await store.chunks.get(OLD[0])
        assert await store.chunks.has([OLD[0], NEW[0]]) == [False, True]
        assert (await store.chunks.stats()).chunks == 1


async def test_a_segment_that_cannot_be_removed_now_is_removed_on_opening(tmp_path):
    files = FaultyFiles()
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([OLD])
        files.faults["unlink"] = errno.EIO
        assert await store.chunks.delete([OLD[0]]) == 1
        assert (tmp_path / "data/segments/00000001.seg").exists()
    async with open_store(tmp_path / "data", quota=None, min_free=0) as store:
        assert not (tmp_path / "data/segments/00000001.seg").exists()
        assert await store.chunks.has([OLD[0]]) == [False]


def test_a_real_limit_on_file_size_is_a_quota_error_and_harms_nothing(tmp_path):
    script = textwrap.dedent(
        """
        import resource, signal, sys, trio
        from pathlib import Path
        from blake3 import blake3
        from meshnode.errors import QuotaError
        from meshnode.node.store import open_store

        async def main(path):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            async with open_store(path, quota=None, min_free=0) as store:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
                refused = 0
                for number in range(8):
                    data = number.to_bytes(2, "big") * 40_000
                    try:
                        await store.chunks.put([(blake3(data).digest(), data)])
                        print(blake3(data).hexdigest(), flush=True)
                    except QuotaError:
                        refused += 1
                small = b"small"
                await store.chunks.put([(blake3(small).digest(), small)])
                print(blake3(small).hexdigest(), flush=True)
                assert refused == 5, refused

        trio.run(main, Path(sys.argv[1]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    held = [bytes.fromhex(line) for line in done.stdout.split() if len(line) == 64]
    assert len(held) == 4

    async def reopen() -> None:
        async with open_store(tmp_path / "data", quota=None, min_free=0) as store:
            for digest in held:
                assert blake3(await store.chunks.get(digest)).digest() == digest
            assert (await store.chunks.stats()).chunks == 4

    trio.run(reopen)
