"""A peer that is only busy is waited for, as long as anything gets on at all."""

from __future__ import annotations

import pytest
import trio
from meshnode.errors import TransferError
from trio.testing import MockClock


@pytest.fixture
def two_copies(mesh) -> None:
    mesh.config = mesh.config.with_overrides({"storage.replication": 2})


async def test_a_put_to_a_peer_that_takes_one_chunk_at_a_time_is_stored_only_slower(
    mesh, make_file, two_copies: None, autojump_clock: MockClock
) -> None:
    mesh.add(most_at_once=1, rate=1e5)  # each chunk takes longer than a busy peer asks to wait
    report = await mesh.putter().put([make_file(3_000_000)])
    assert (report.outcome, report.sources[0].copies) == ("stored", 2)
    assert report.sources[0].retries > 50


async def test_a_get_from_a_peer_that_serves_one_chunk_at_a_time_comes_only_slower(
    mesh, make_file, tmp_path, two_copies: None, autojump_clock: MockClock
) -> None:
    only = mesh.add()
    path = make_file(3_000_000)
    link = (await mesh.putter().put([path])).sources[0].link
    only.most_at_once, only.rate = 1, 1e5
    await mesh.getter().get(link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_a_peer_that_says_busy_for_ever_is_given_up_once(
    mesh, make_file, two_copies: None, autojump_clock: MockClock
) -> None:
    mesh.add(most_at_once=0)
    began = trio.current_time()
    report = await mesh.putter().put([make_file(6_000_000)])
    assert report.outcome == "weak"
    assert 15 < trio.current_time() - began < 45


async def test_a_get_does_not_wait_for_ever_for_busy_holders(
    mesh, make_file, tmp_path, two_copies: None, autojump_clock: MockClock
) -> None:
    only = mesh.add()
    link = (await mesh.putter().put([make_file(3_000_000)])).sources[0].link
    only.most_at_once = 0
    began = trio.current_time()
    with pytest.raises(TransferError, match="busy"):
        await mesh.getter().get(link, tmp_path / "out")
    assert trio.current_time() - began < 60
