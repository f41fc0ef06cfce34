"""Repair beside a person: copies that were lost are made again, and nobody else waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from meshnode.node.exchange import BandwidthLimits, Lane
from meshnode.node.transfer import PutOptions, PutReport
from meshnode.node.transfer import put_source as put_source_module
from trio.testing import MockClock

from tests.simulation.transfer.test_put_flow import make_file, putter

LINE = 2_000_000
WANTED, PUT = 2_000_000, 9_000_000


@pytest.mark.parametrize("passed_on", [True, False])
async def test_copies_made_again_leave_a_get_nearly_all_of_the_line(
    open_mesh,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    passed_on: bool,
) -> None:
    """`passed_on` false: the same without the lane, so that it is the lane that makes it so."""
    async with open_mesh(["a", "a", "a", "a"]) as mesh:
        first, forgetful, _, person = mesh.nodes
        repairs = trio.Event()
        real_read_back, real_put = put_source_module.read_back, first.exchange.put
        repaired = 0

        async def forget(*args: object) -> object:
            if not repairs.is_set():
                forgetful.store._chunks.clear()
            return await real_read_back(*args)

        async def put(*args: object, lane: Lane, **more: object) -> object:
            nonlocal repaired
            if lane is Lane.REPAIR:
                repairs.set()
            receipt = await real_put(*args, lane=lane if passed_on else Lane.INTERACTIVE, **more)
            repaired += (lane is Lane.REPAIR) * receipt.size
            return receipt

        monkeypatch.setattr(put_source_module, "read_back", forget)
        monkeypatch.setattr(first.exchange, "put", put)
        alone_only = PutOptions(replication=1)
        links = [
            (await putter(first, 1).put([make_file(tmp_path, WANTED, seed)], alone_only))
            .sources[0]
            .link
            for seed in (1, 2)
        ]
        first.exchange.traffic.set_limits(BandwidthLimits(upload=LINE))
        alone = await person.getter.get(links[0], tmp_path / "alone")

        reports: list[PutReport] = []
        async with trio.open_nursery() as nursery:

            async def put_and_lose() -> None:
                reports.append(await putter(first, 2).put([make_file(tmp_path, PUT, 3)]))

            nursery.start_soon(put_and_lose)
            await repairs.wait()
            before = repaired
            beside = await person.getter.get(links[1], tmp_path / "beside")
            moved = repaired - before
            assert not (passed_on and reports), "the repair was over before the get"
        assert reports[0].outcome == "stored"
        assert moved > 0
        share = alone.seconds / beside.seconds
        assert (share > 0.8) if passed_on else (share < 0.6)
