"""Bandwidth limits of `config.toml` on real nodes and real sockets.

Only lower bounds of time: a busy machine cannot break them, and without the limit the same bytes
take a small part of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import meshnode
import pytest
import trio
from meshnode.node import assembly
from meshnode.node.bandwidth import follow_schedule
from meshnode.node.identity import Mesh

LIMIT = 512 * 1024
SIZE = 512 * 1024
CHUNK = 64 * 1024
AT_ONCE = CHUNK + LIMIT // 10 + CHUNK // 2
"""May pass before anything waits: one body, what was saved up, and something to spare."""
LEAST_SECS = (SIZE - AT_ONCE) / LIMIT


def _config(home: Path, mesh: Mesh, bandwidth: str) -> meshnode.Config:
    home.mkdir()
    mesh.save(home / "mesh.json")
    (home / "config.toml").write_text(
        '[network]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\nmdns = false\n'
        f'[ingest]\nchunk_size = {CHUNK}\nchunker = "fixed"\n'
        f"[performance.bandwidth]\n{bandwidth}\n"
    )
    return meshnode.load_config(home, env={})


@asynccontextmanager
async def _pair(
    tmp_path: Path, bandwidth: str
) -> AsyncIterator[tuple[meshnode.Node, meshnode.Node]]:
    """A node with these limits, and one without."""
    mesh = Mesh.create("limits")
    async with meshnode.open_node(_config(tmp_path / "free", mesh, "")) as free:
        joined = mesh.with_bootstrap(free.addresses())
        async with meshnode.open_node(_config(tmp_path / "limited", joined, bandwidth)) as limited:
            await limited.wait_ready()
            yield limited, free


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.randbytes(SIZE))
    return path


async def _seconds_to_put(node: meshnode.Node, path: Path) -> float:
    began = time.monotonic()
    report = await node.put_all([path], meshnode.PutOptions(replication=2))
    assert report.sources[0].copies == 2
    return time.monotonic() - began


async def _seconds_to_get(node: meshnode.Node, link: meshnode.Link, out: Path) -> float:
    began = time.monotonic()
    await node.get(link, out)
    return time.monotonic() - began


@pytest.mark.parametrize("key", ["upload", "per_peer_upload"])
async def test_a_node_sends_no_faster_than_its_file_says_as_putter_and_as_holder(
    tmp_path: Path, key: str
) -> None:
    async with _pair(tmp_path, f'{key} = "{LIMIT // 1024}KiB/s"') as (limited, free):
        path = _file(tmp_path)
        assert await _seconds_to_put(limited, path) >= LEAST_SECS
        up = limited._parts.traffic.up
        assert up.total >= SIZE
        options = meshnode.PutOptions(replication=1, public=True)
        (kept,) = (await limited.put_all([path], options)).sources
        assert kept.link is not None
        assert await _seconds_to_get(free, kept.link, tmp_path / "copy") >= LEAST_SECS
        assert up.total >= 2 * SIZE
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("key", ["download", "per_peer_download"])
async def test_a_node_takes_no_faster_than_its_file_says_as_getter_and_as_holder(
    tmp_path: Path, key: str
) -> None:
    async with _pair(tmp_path, f'{key} = "{LIMIT // 1024}KiB/s"') as (limited, free):
        path = _file(tmp_path)
        options = meshnode.PutOptions(replication=1, public=True)
        (kept,) = (await free.put_all([path], options)).sources
        assert kept.link is not None
        assert await _seconds_to_get(limited, kept.link, tmp_path / "copy") >= LEAST_SECS
        down = limited._parts.traffic.down
        assert down.total >= SIZE
        assert await _seconds_to_put(free, path) >= LEAST_SECS
        assert down.total >= 2 * SIZE


async def test_the_timetable_of_the_file_limits_a_node_in_its_hours_and_sets_it_free_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def monday(hour: int) -> time.struct_time:
        return time.struct_time((2026, 6, 1, hour, 0, 0, 0, 152, 0))

    real = assembly.limits_now
    monkeypatch.setattr(assembly, "limits_now", lambda told, _: real(told, monday(9)))
    monkeypatch.setattr(assembly, "follow_schedule", _nothing)
    schedule = f'schedule = ["mon-fri 08:00-18:00 upload={LIMIT // 1024}KiB/s"]'
    async with _pair(tmp_path, schedule) as (limited, _), trio.open_nursery() as nursery:
        traffic = limited._parts.traffic
        assert traffic.limits.upload == LIMIT
        assert await _seconds_to_put(limited, _file(tmp_path)) >= LEAST_SECS
        settings = limited._parts.config.performance.bandwidth
        nursery.start_soon(follow_schedule, traffic, settings, lambda: monday(18))
        await trio.testing.wait_all_tasks_blocked()
        assert traffic.limits.upload == 0
        nursery.cancel_scope.cancel()


async def _nothing(*_: object) -> None:
    pass
