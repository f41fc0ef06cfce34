"""Sources of one put that share chunks: one that breaks off takes nothing away from another."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from meshnode.node.transfer import StreamSource, upload
from trio.testing import MockClock


async def test_a_source_that_breaks_off_leaves_the_chunks_it_shares_to_the_other(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "UPLOAD_BYTES", 256 << 10)
    for _ in range(2):
        mesh.add(rate=1e6)
    path = make_file(20 << 20)
    data = path.read_bytes()

    async def broken() -> AsyncIterator[bytes]:
        yield data[: 17 << 20]  # two windows, which wait for the network when it breaks off
        await trio.sleep(1)  # by now chunks wait for their turn
        raise OSError("the client went away")

    with trio.fail_after(3600):
        report = await mesh.putter().put([StreamSource("a", broken()), path])
    assert [source.outcome for source in report.sources] == ["failed", "stored"]
    for digest, peers in report.sources[1].placements.items():
        assert len(peers) == 2
        for peer in peers:
            assert (await mesh.peers[peer].store.has([digest])) == [True]


async def test_sources_that_break_off_leave_no_bytes_in_memory_beyond_the_budget(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "UPLOAD_BYTES", 256 << 10)
    for _ in range(2):
        mesh.add(rate=1e6)
    reads = 0
    real = mesh.store.get

    async def counting(digest: bytes) -> bytes:
        nonlocal reads
        reads += 1
        return await real(digest)

    monkeypatch.setattr(mesh.store, "get", counting)

    async def broken(seed: int) -> AsyncIterator[bytes]:
        yield random.Random(seed).randbytes(9 << 20)
        await trio.sleep(1)  # by now chunks wait for their turn
        raise OSError("the client went away")

    sources = [StreamSource(f"s{seed}", broken(seed)) for seed in range(4)]
    report = await mesh.putter().put(sources)
    assert report.outcome == "failed"
    # Whoever still waited when its source ended let go of its bytes, and read them again.
    assert reads > 0
