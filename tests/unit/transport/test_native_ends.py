"""How a connection ends, and what is left of it."""

from __future__ import annotations

import pytest
import trio
from meshnode.errors import PeerError
from meshnode.node.transport.native_socket import NativeSocket
from meshnode.node.transport.native_stream import NativeStream
from meshnode.node.transport.yamux_limits import YamuxLimits

from tests.unit.transport.native_in_the_clear import (
    FORGED,
    MIB,
    both_ends,
    native,
    pair,
    read_all,
    send,
    sockets,
)
from tests.unit.transport.yamux_by_hand import DATA, GO_AWAY, RST, SYN, WINDOW, data, frame


async def test_what_came_before_a_reset_in_the_same_packet_is_seen_and_no_clean_end() -> None:
    near, far = await sockets()
    serving = native(near)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(serving.run)
        opened = data(1, b"hello", flags=SYN)
        await far.send_all(opened + frame(WINDOW, RST, 1, 0))
        stream = await serving.accept()
        assert await stream.read(100) == b"hello"
        with pytest.raises(PeerError, match="reset by the peer"):
            await stream.read(100)
        assert serving.streams == 0
        serving.close("the test is over")


async def test_a_lost_connection_fails_everything_that_waits() -> None:
    near, far = await sockets()
    one = native(near, initiator=True)
    failures: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)

        async def wait(stream: NativeStream, *, writing: bool) -> None:
            with pytest.raises(PeerError) as caught:
                await (stream.write(bytes(20 * MIB)) if writing else stream.read(1))
            failures.append(caught.value.message)

        for writing in (True, False):
            nursery.start_soon(lambda writing=writing: wait(one.open(), writing=writing))
        await trio.testing.wait_all_tasks_blocked()
        await far.aclose()
        with pytest.raises(PeerError, match="lost"):
            await one.accept()
    assert len(failures) == 2
    assert all("lost" in failure for failure in failures)
    with pytest.raises(PeerError, match="lost"):
        one.open()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (b"\x01" * 12, "bad_version"),
        (FORGED, "bad_noise_frame"),
        (frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, 2**31),
         "window_overrun"),
        (b"".join(frame(WINDOW, SYN, 1 + 2 * n, 0) for n in range(9000)),
         "stream_flood"),
    ],
    ids=["version", "forged", "overrun", "flood"],
)  # fmt: skip
async def test_a_hostile_peer_is_disconnected_for_a_counted_reason(
    attack: bytes, reason: str
) -> None:
    near, far = await sockets()
    reasons: list[str] = []
    victim = native(near, reasons=reasons)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(victim.run)
        with trio.move_on_after(5):
            try:
                await far.send_all(attack)
                while await far.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
    assert reasons == [reason]
    assert victim.why_closed is not None


async def test_a_violation_is_answered_with_a_go_away() -> None:
    near, far = await sockets()
    victim = native(near)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(victim.run)
        await far.send_all(b"\x01" * 12)
        answer = b""
        while data := await far.receive_some():
            answer += data
    assert answer.endswith(frame(GO_AWAY, 0, 0, 1))


async def test_a_peer_that_goes_away_is_let_go_when_its_last_stream_ends() -> None:
    near, far = await sockets()
    one = native(near, initiator=True)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        stream = one.open()
        await far.send_all(frame(GO_AWAY, 0, 0, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert one.leaving
        assert one.why_closed is None
        stream.reset()
        assert one.why_closed == "the peer went away"


async def test_a_thousand_streams_one_after_another_leave_nothing_behind() -> None:
    async with pair() as (one, other):
        for _ in range(1000):
            mine, theirs = await both_ends(one, other)
            await send(mine, b"x")
            assert await read_all(theirs) == b"x"
            theirs.close()
            assert await read_all(mine) == b""
        for connection in (one, other):
            assert connection.streams == 0
            assert not connection._streams
            core = connection._core
            assert not core._over
            assert not core._peer_ids._skipped
            assert core.credit.left == YamuxLimits().budget


async def test_a_socket_closed_in_between_is_never_waited_for() -> None:
    near, far = await sockets()
    async with far:
        wire = NativeSocket(near)
        wire.close()
        wire.close()
        for _ in range(2):
            with pytest.raises(PeerError, match="closed here"):
                await wire.wait_readable()
            with pytest.raises(PeerError, match="closed here"):
                await wire.wait_writable(1)
