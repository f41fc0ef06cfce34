"""Streams between our host and other implementations behave the same from both ends."""

from __future__ import annotations

import secrets

import pytest
import trio

from .conftest import Connected, link
from .foreign import JS, ForeignProcess, js_command, running

MIB = 1 << 20
# Around the plaintext of a Noise frame, the largest Noise frame and the first Yamux window.
BORDERS = [
    border + more
    for border in (65_519, 65_535, 262_144, 262_144 - 12)
    for more in (-1, 0, 1)
]  # fmt: skip


def token() -> str:
    return secrets.token_hex(8)


async def test_64_mib_are_echoed_over_several_streams_while_others_go_the_other_way(
    connected: Connected,
) -> None:
    async with connected() as link:
        many, few = link.pair("we open" if link.we_dialled else "they open")

        async def echo_back() -> None:
            assert await few.play("echo", streams=2, size=2 * MIB, pieces=[100_000]) == 4 * MIB

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_back)
            assert await many.play("echo", streams=4, size=16 * MIB, pieces=[MIB]) == 64 * MIB


async def test_writes_of_any_size_arrive_whole_and_in_order(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        assert await side.play("echo", streams=2, size=700, pieces=[1, 2, 3]) == 1400
        total = sum(BORDERS)
        assert await side.play("echo", streams=1, size=total, pieces=BORDERS) == total
        assert await side.play("echo", streams=1, size=6 * MIB, pieces=[6 * MIB]) == 6 * MIB


async def test_the_other_half_stays_open_after_the_opener_has_ended(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        for size in (0, 1, 3 * MIB + 7):
            assert await side.play("digest", size=size, pieces=[65536]) == size


async def test_the_opener_can_still_write_after_the_other_side_has_ended(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, other = link.pair(opener)
        name = token()
        heard = await side.play("writes_after_their_end", token=name, size=MIB)
        assert heard == "nothing more"
        assert await other.play("ending_of", token=name) == f"end after {MIB}"


async def test_a_reset_is_not_taken_for_an_end(connected: Connected, opener: str) -> None:
    async with connected() as link:
        side, other = link.pair(opener)
        name = token()
        await side.play("resets", token=name)
        assert await other.play("ending_of", token=name) == "reset"
        assert await side.play("reads_until_reset") == "reset"


async def test_an_end_is_not_taken_for_a_reset(connected: Connected, opener: str) -> None:
    async with connected() as link:
        side, other = link.pair(opener)
        name = token()
        assert await side.play("ends", token=name) == "end"
        assert await other.play("ending_of", token=name) == "end"


async def test_a_reset_in_the_middle_of_writing_ends_that_stream_alone(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        assert await side.play("writes_until_reset") == "reset"
        assert await side.play("echo", streams=1, size=MIB, pieces=[65536]) == MIB


async def test_many_short_streams_come_and_go(connected: Connected, opener: str) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        assert await side.play("short_streams", count=100, at_once=20) == 100


async def test_a_stream_nobody_reads_is_bounded_and_holds_up_no_other(
    connected: Connected, opener: str
) -> None:
    async with connected() as link:
        side, _ = link.pair(opener)
        taken = await side.play("writes_to_nobody")
        assert isinstance(taken, int)
        assert taken <= 33 * MIB


@pytest.mark.parametrize("dialler", ["we dial", "they dial"])
async def test_a_js_program_that_iterates_over_a_stream_gets_all_that_came_before_the_end(
    js_process: ForeignProcess, dialler: str
) -> None:
    async with link(js_process, dialler) as linked:
        for size in (8, 1000, 65_536, 3 * MIB):
            name = token()
            stream = await linked.ours.open_stream("/test/iterates/1")
            await stream.write(bytes.fromhex(name) + bytes(size - 8))
            await stream.close()
            assert await linked.theirs.play("ending_of", token=name) == f"end after {size}"


@pytest.mark.usefixtures("js_installed")
async def test_js_with_the_noise_and_yamux_of_chainsafe_echoes_both_ways() -> None:
    with running(js_command("--chainsafe"), JS) as process:
        for dialler in ("we dial", "they dial"):
            async with link(process, dialler) as linked:
                for side in (linked.ours, linked.theirs):
                    echoed = await side.play("echo", streams=4, size=MIB, pieces=[100_000])
                    assert echoed == 4 * MIB
