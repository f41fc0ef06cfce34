"""Puts over real exchanges and servers: slow disks, peers that freeze or die, puts cut short."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.node.exchange import Receipt
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import Putter
from meshnode.node.transfer.trace import Trace
from trio.testing import MockClock

CHUNK_SYNC, HOLD_SYNC = 0.024, 0.013


class Disk(MemoryStore):
    """Commits one after the other, each for all that came meanwhile, as a real disk does."""

    def __init__(self, sync: float) -> None:
        super().__init__()
        self._sync = sync
        self._lock = trio.Lock()
        self._waiting: list[trio.Event] = []

    async def commit(self) -> None:
        done = trio.Event()
        self._waiting.append(done)
        async with self._lock:
            if done.is_set():
                return
            batch, self._waiting = self._waiting, []
            await trio.sleep(self._sync)
            for event in batch:
                event.set()

    async def put(self, chunks, *, verify: bool = True) -> None:
        await self.commit()
        await super().put(chunks, verify=verify)


class Journal:
    """Everything is written down at once."""

    def __init__(self) -> None:
        self.signed: dict[tuple[bytes, PeerId], Receipt] = {}

    def stored(self, digests: Sequence[bytes]) -> None:
        pass

    def copied(self, receipt: Receipt) -> None:
        self.signed[receipt.digest, receipt.holder] = receipt

    async def receipts(self, digests: Sequence[bytes]) -> dict[bytes, list[Receipt]]:
        await trio.lowlevel.checkpoint()
        found: dict[bytes, list[Receipt]] = {}
        for (digest, _), receipt in self.signed.items():
            if digest in digests:
                found.setdefault(digest, []).append(receipt)
        return found

    async def lost(self, peer: PeerId, digests: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        for digest in digests:
            self.signed.pop((digest, peer), None)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


class Traces:
    def __init__(self) -> None:
        self.kept: list[Trace] = []

    async def keep(self, trace: Trace) -> None:
        await trio.lowlevel.checkpoint()
        self.kept.append(trace)


def putter(node, copies: int, **parts: object) -> Putter:
    config = node.context.config.with_overrides({"storage.replication": copies})
    return Putter(replace(node.context, config=config, **parts))


def make_file(tmp_path: Path, size: int, seed: int = 5) -> Path:
    path = tmp_path / f"source-{seed}"
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


async def test_a_peer_whose_disk_takes_its_time_does_not_slow_a_put_to_four_chunks_a_commit(
    open_mesh, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_mesh(["a", "a"], latency=0.0005, bandwidth=1e9) as mesh:
        first, second = mesh.nodes
        disk, holds = Disk(CHUNK_SYNC), Disk(HOLD_SYNC)
        monkeypatch.setattr(second.store, "put", _through(disk, second.store))
        monkeypatch.setattr(second.store, "has", _after(holds, second.store))
        quick = await putter(first, 2).put([make_file(tmp_path, 8_000_000, 1)])
        # As if a chunk kept its slot until its receipt came.
        monkeypatch.setattr("meshnode.node.transfer.upload_flow.TurnPart.sent", lambda self: None)
        slow = await putter(first, 2).put([make_file(tmp_path, 8_000_000, 2)])
    assert (quick.outcome, slow.outcome) == ("stored", "stored")
    assert quick.seconds * 2 < slow.seconds


def _through(disk: Disk, store: MemoryStore):
    real = store.put

    async def put(chunks, *, verify: bool = True) -> None:
        await disk.commit()
        await real(chunks, verify=verify)

    return put


def _after(holds: Disk, store: MemoryStore):
    """The server looks once more after the promise was written down: the place to wait for it."""
    real = store.has

    async def has(digests):
        if len(digests) == 1:
            await holds.commit()
        return await real(digests)

    return has


async def test_a_put_cut_short_goes_on_without_sending_anything_twice(
    open_mesh, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(tmp_path, 4_000_000)
    journal = Journal()
    async with open_mesh(["a", "b", "c"], bandwidth=2e6) as mesh:
        first = mesh.nodes[0]
        with trio.move_on_after(1.2) as scope:
            await putter(first, 3, journal=journal).put([path])
        assert scope.cancelled_caught
        there = sum(len(node.store._chunks) for node in mesh.nodes[1:])
        signed = len(journal.signed)
        assert there >= signed
        report = await putter(first, 3, journal=journal).put([path])
        source = report.sources[0]
        assert report.outcome == "stored"
        assert source.found_copies == signed > 10
        assert 0 < source.bytes_sent <= (source.receipts - source.found_copies) * 66_000
        for digest in source.placements:
            assert len(mesh.holders(digest)) == 3


async def test_a_holder_that_dies_while_a_put_runs_is_replaced(
    open_mesh, tmp_path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    traces = Traces()
    async with open_mesh(["a", "a", "a", "a"], bandwidth=2e6) as mesh:
        first, victim = mesh.nodes[0], mesh.nodes[1]
        stored, put = 0, victim.store.put

        async def put_or_die(*arguments: object, **options: object) -> None:
            nonlocal stored
            stored += 1
            if stored == 10:  # with a chunk in its hands, and no receipt written for it
                mesh.network.kill(victim.peer)
            await put(*arguments, **options)

        monkeypatch.setattr(victim.store, "put", put_or_die)
        report = await putter(first, 3, traces=traces).put([make_file(tmp_path, 4_000_000)])
        assert stored >= 10
        assert report.outcome == "stored"
        assert victim.peer not in report.sources[0].peers
    assert any(part.peer == victim.peer and part.last_error for part in traces.kept[0].peers)


async def test_a_peer_that_freezes_costs_its_silence_and_not_the_deadline_of_every_chunk(
    open_mesh, tmp_path, autojump_clock: MockClock
) -> None:
    traces = Traces()
    size = 4_000_000
    async with open_mesh(["a", "a", "a", "a"], bandwidth=4e6) as mesh:
        first, frozen = mesh.nodes[0], mesh.nodes[1]
        calm = await putter(first, 2).put([make_file(tmp_path, size, 1)])

        before = len(frozen.store._chunks)

        async def freeze() -> None:
            while len(frozen.store._chunks) < before + 8:  # noqa: ASYNC110  virtual time
                await trio.sleep(0.001)
            mesh.network.freeze(frozen.peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(freeze)
            report = await putter(first, 2, traces=traces).put([make_file(tmp_path, size, 2)])
        assert report.outcome == "stored"
        (trace,) = traces.kept
        wasted = sum(part.wasted for part in trace.peers)
        moved = trace.counts.get("moved", 0) * 66_000  # what a frozen peer has is sent again anyway
        assert wasted <= 0.05 * 1.02 * size + moved
        # Its silence is noticed in about a second, and again when its copies are read back.
        assert trace.phase("confirming").busy < 1.5
        assert trace.seconds < calm.seconds + 4
        assert frozen.peer in report.sources[0].peers
        assert any("not confirmed" in warning for warning in report.sources[0].warnings)
