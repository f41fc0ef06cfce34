"""Group commit: who waits is committed together, and a cancelled caller harms nobody else."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest
import trio
from blake3 import blake3
from meshnode.node.store import open_store
from meshnode.node.store.files import OsFiles
from meshnode.node.store.group_commit import GroupCommit
from trio.testing import wait_all_tasks_blocked


class Disk:
    """A commit that blocks until it is let go, and remembers what came together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def commit(self, requests):
        self.batches.append(list(requests))
        self.started.release()
        assert self.go.acquire(timeout=20)

    async def wait_started(self):
        await trio.to_thread.run_sync(self.started.acquire)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def commits(disk):
    return GroupCommit(disk.commit, trio.CapacityLimiter(1), max_weight=10)


async def test_all_that_arrive_during_a_commit_share_the_next(commits, disk):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.submit, "first", 1)
        await disk.wait_started()
        for name in ("a", "b", "c"):
            nursery.start_soon(commits.submit, name, 1)
        await trio.testing.wait_all_tasks_blocked()
        disk.go.release(2)
    assert disk.batches[0] == ["first"]
    assert sorted(disk.batches[1]) == ["a", "b", "c"]
    assert len(disk.batches) == 2


async def test_a_commit_takes_no_more_than_its_weight_but_at_least_one(commits, disk):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.submit, "first", 99)
        await disk.wait_started()
        for name in ("a", "b", "c"):
            nursery.start_soon(commits.submit, name, 5)
            await wait_all_tasks_blocked()
        disk.go.release(3)
    assert disk.batches == [["first"], ["a", "b"], ["c"]]


async def test_a_request_cancelled_in_the_queue_is_withdrawn(commits, disk):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.submit, "first", 1)
        await disk.wait_started()
        nursery.start_soon(commits.submit, "before", 1)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await commits.submit("cancelled", 1)
        assert scope.cancelled_caught
        nursery.start_soon(commits.submit, "after", 1)
        await wait_all_tasks_blocked()
        disk.go.release(2)
    assert disk.batches == [["first"], ["before", "after"]]


async def test_a_leader_cancelled_before_its_turn_passes_the_lead_on(commits, disk):
    scope = trio.CancelScope()

    async def cancelled():
        with scope:
            await commits.submit("cancelled", 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.submit, "first", 1)
        await disk.wait_started()
        nursery.start_soon(cancelled)
        await wait_all_tasks_blocked()
        nursery.start_soon(commits.submit, "after", 1)
        await wait_all_tasks_blocked()
        # In one step, as when both happen in the same round of the event loop: the cancellation is
        # on its way when its task is elected.
        scope.cancel()
        commits._pass_on()
        disk.go.release(2)
    assert ["after"] in disk.batches


async def test_cancelling_what_is_being_committed_waits_for_the_commit(commits, disk):
    scope = trio.CancelScope()
    ended = []

    async def follower():
        try:
            with scope:
                await commits.submit("follower", 1)
        finally:
            ended.append(len(disk.batches))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.submit, "first", 1)
        await disk.wait_started()
        nursery.start_soon(commits.submit, "leader", 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(follower)
        await wait_all_tasks_blocked()
        disk.go.release()
        await disk.wait_started()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert ended == [], "its buffers are still being read"
        disk.go.release()
    assert ended == [2]
    assert scope.cancelled_caught


async def test_a_commit_that_raises_lets_the_others_go_on():
    calls = []

    def commit(requests):
        calls.append(list(requests))
        if len(calls) == 1:
            raise ZeroDivisionError

    commits = GroupCommit(commit, trio.CapacityLimiter(1), max_weight=1)
    with pytest.raises(ZeroDivisionError):
        await commits.submit("first", 1)
    await commits.submit("second", 1)
    assert calls == [["first"], ["second"]]


class SlowFiles(OsFiles):
    """Writes wait until they are let go."""

    def __init__(self) -> None:
        self.writing = threading.Event()
        self.go = threading.Event()
        self.syncs = 0

    def write(self, fd, buffers, offset):
        self.writing.set()
        assert self.go.wait(20)
        return super().write(fd, buffers, offset)

    def sync(self, fd):
        self.syncs += 1
        super().sync(fd)


def chunk_of(data):
    return blake3(data).digest(), data


async def test_many_puts_share_one_sync(tmp_path):
    files = SlowFiles()
    files.go.set()
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([chunk_of(b"makes the segment")])
        files.go.clear()
        files.writing.clear()
        before = files.syncs
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.chunks.put, [chunk_of(b"first")])
            await trio.to_thread.run_sync(files.writing.wait)
            for number in range(30):
                nursery.start_soon(store.chunks.put, [chunk_of(b"%d" % number)])
            await wait_all_tasks_blocked(0.05)
            files.go.set()
        assert (await store.chunks.stats()).chunks == 32
        # All may have queued by then, or some may still have been in a hashing thread.
        assert files.syncs - before < 10


async def test_a_put_cancelled_while_it_is_written_is_whole_and_others_keep_theirs(tmp_path):
    files = SlowFiles()
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        buffer = bytearray(b"buffer of the cancelled put" * 100)
        digest = blake3(buffer).digest()
        content = bytes(buffer)
        other = chunk_of(b"of another task")
        scope = trio.CancelScope()

        async def cancelled():
            with scope:
                await store.chunks.put([(digest, buffer)])
            buffer[:] = bytes(len(buffer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            await trio.to_thread.run_sync(files.writing.wait)
            nursery.start_soon(store.chunks.put, [other])
            # Another task wants the very chunk whose put is about to be cancelled.
            nursery.start_soon(store.chunks.put, [(digest, content)])
            await wait_all_tasks_blocked(0.02)
            scope.cancel()
            await wait_all_tasks_blocked(0.02)
            files.go.set()
        assert await store.chunks.get(digest) == content
        assert await store.chunks.get(other[0]) == other[1]


class WatchedFiles(OsFiles):
    """Notes the order of calls, and how many chunks the index knows at each."""

    def __init__(self, index_path) -> None:
        self.index_path = index_path
        self.calls: list[tuple[str, int]] = []

    def _note(self, call: str) -> None:
        with closing(sqlite3.connect(self.index_path)) as db:
            (count,) = db.execute("SELECT count(*) FROM chunks").fetchone()
        self.calls.append((call, count))

    def write(self, fd, buffers, offset):
        self._note("write")
        return super().write(fd, buffers, offset)

    def sync(self, fd):
        super().sync(fd)
        self._note("sync")

    def sync_directory(self, path):
        super().sync_directory(path)
        if self.index_path.exists():
            self._note("sync directory")


async def test_bytes_are_synced_before_the_index_knows_them_and_before_put_returns(tmp_path):
    files = WatchedFiles(tmp_path / "data/index.db")
    async with open_store(tmp_path / "data", quota=None, min_free=0, files=files) as store:
        await store.chunks.put([chunk_of(b"one")])
        making = [("write", 0), ("sync", 0), ("sync directory", 0)]
        assert files.calls == [*making, ("write", 0), ("sync", 0)]
        files.calls.clear()
        await store.chunks.put([chunk_of(b"two"), chunk_of(b"three")])
        assert files.calls == [("write", 1), ("sync", 1)]
        files.calls.clear()
        await store.chunks.delete([chunk_of(b"one")[0]])
        assert files.calls == [("write", 3), ("sync", 3)]
        assert await store.chunks.has([chunk_of(b"one")[0]]) == [False]
