"""Two cores and a wire that cuts anywhere, against plain byte queues; and bytes nobody chose."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)
from meshnode.errors import PeerError
from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_budget import ReceiveBudget
from meshnode.node.transport.yamux_frames import INITIAL_WINDOW, YamuxError
from meshnode.node.transport.yamux_limits import YamuxLimits
from meshnode.node.transport.yamux_stream import YamuxStream

LIMITS = YamuxLimits(window=300_000, budget=500_000, max_inbound=20, accept_backlog=20)
BOUND = 30 * INITIAL_WINDOW + LIMITS.budget


def cut(wire: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`wire` in pieces of `sizes`, over and over."""
    position = 0
    while position < len(wire):
        for size in sizes:
            if piece := wire[position : position + size]:
                yield piece
            position += size


@given(
    writes=st.lists(st.integers(0, 70_000), max_size=8),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_however_the_bytes_are_cut_the_same_arrives(writes: list[int], sizes: list[int]) -> None:
    client, server = YamuxCore(True, YamuxLimits()), YamuxCore(False, YamuxLimits())
    stream = client.open()
    sent, wire = bytearray(), bytearray()
    for number, size in enumerate(writes):
        body = bytes([number]) * size
        stream.begin_write(body)
        sent += body[: stream.send_window]
        wire += b"".join(client.take_outgoing(1 << 30))
        stream.abandon_write()
    stream.close()
    wire += b"".join(client.take_outgoing(1 << 30))
    server.receive(list(cut(bytes(wire), sizes)))
    other = server.accept()
    assert other is not None
    got = bytearray()
    while data := other.read(5000):
        got += data
    assert data == b""
    assert got == sent


frames = st.builds(
    struct.pack,
    st.just(">BBHII"),
    st.sampled_from([0, 0, 0, 0, 0, 0, 1]),
    st.sampled_from([0, 0, 1, 1, 2, 3, 9]),
    st.sampled_from([0, 0, 0, 1, 1, 1, 2, 4, 8, 5, 9, 16]),
    st.integers(0, 9),
    st.sampled_from([0, 0, 1, 5, 100, 256 * 1024, 0xFFFF_FFFF]),
)


@given(
    pieces=st.lists(st.one_of(frames, st.binary(max_size=40), st.just(bytes(300))), max_size=40),
    read=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_hostile_bytes_raise_nothing_else_and_hold_bounded_memory(
    pieces: list[bytes], read: bool
) -> None:
    core = YamuxCore(False, LIMITS)
    streams: list[YamuxStream] = [core.open()]
    try:
        for piece in pieces:
            core.receive(piece)
            while (stream := core.accept()) is not None:
                streams.append(stream)
            assert core.buffered <= BOUND
            assert core.streams <= LIMITS.max_inbound + 1
            for stream in streams if read else ():
                try:
                    stream.read(50)
                except PeerError:
                    continue
            core.take_outgoing(1000)
    except YamuxError:
        return


class TwoEnds(RuleBasedStateMachine):
    """What was written on one end comes out at the other, in order, and nothing else."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.shared = ReceiveBudget(900_000)
        self.cores = (
            YamuxCore(True, LIMITS, shared=self.shared),
            YamuxCore(False, LIMITS, shared=self.shared),
        )
        self.wires = (bytearray(), bytearray())
        self.ends: dict[tuple[int, int], YamuxStream] = {}
        self.sent: dict[tuple[int, int], bytearray] = {}
        self.got: dict[tuple[int, int], int] = {}
        self.closed: set[tuple[int, int]] = set()
        self.reset: set[int] = set()

    def _know(self, side: int, stream: YamuxStream) -> tuple[int, int]:
        key = side, stream.id
        self.ends[key] = stream
        self.sent.setdefault(key, bytearray())
        self.got.setdefault(key, 0)
        return key

    @precondition(lambda self: len(self.ends) < 10)
    @rule(target=streams, side=st.integers(0, 1))
    def open(self, side: int) -> tuple[int, int]:
        return self._know(side, self.cores[side].open())

    @rule(target=streams, side=st.integers(0, 1))
    def accept(self, side: int) -> object:
        stream = self.cores[side].accept()
        return multiple() if stream is None else self._know(side, stream)

    @rule(key=streams, size=st.integers(1, 400_000), fill=st.integers(0, 255))
    def write(self, key: tuple[int, int], size: int, fill: int) -> None:
        stream = self.ends[key]
        if stream.pending is None and stream.failure is None and key not in self.closed:
            body = bytes([fill]) * size
            stream.begin_write(body)
            self.sent[key] += body

    @rule(key=streams, size=st.integers(1, 500_000))
    def read(self, key: tuple[int, int], size: int) -> None:
        side, stream_id = key
        if stream_id in self.reset:
            return
        stream = self.ends[key]
        sink, sunk = stream.sink, stream.release_sink()
        data = bytes(sink[:sunk]) if sink is not None and sunk else stream.read(size)
        expected = self.sent.get((1 - side, stream_id), bytearray())
        start = self.got[key]
        assert (data or b"") == expected[start : start + len(data or b"")]
        if data == b"":
            assert (1 - side, stream_id) in self.closed
            assert start == len(expected)
        self.got[key] += len(data or b"")

    @rule(key=streams, size=st.integers(1, 500_000))
    def wait_for_bytes(self, key: tuple[int, int], size: int) -> None:
        stream = self.ends[key]
        if not stream.readable and stream.sink is None:
            stream.sink = memoryview(bytearray(size))

    @rule(key=streams)
    def close(self, key: tuple[int, int]) -> None:
        self.ends[key].close()
        self.closed.add(key)

    @rule(key=consumes(streams))
    def give_up(self, key: tuple[int, int]) -> None:
        self.reset.add(key[1])
        self.ends[key].reset()

    @rule(side=st.integers(0, 1), room=st.integers(1, 300_000))
    def send(self, side: int, room: int) -> None:
        self.wires[side].extend(b"".join(self.cores[side].take_outgoing(room)))

    @rule(
        side=st.integers(0, 1), size=st.integers(1, 400_000), cuts=st.lists(st.integers(12, 65_519))
    )
    def deliver(self, side: int, size: int, cuts: list[int]) -> None:
        wire, core = self.wires[side], self.cores[1 - side]
        for piece in cut(bytes(wire[:size]), cuts or [size]):
            if (room := core.room(len(piece))) is not None:
                room[:] = piece
                core.filled(len(piece))
            else:
                core.take(piece)
        core.take_events()
        del wire[:size]

    @invariant()
    def memory_is_bounded(self) -> None:
        for core in self.cores:
            assert core.buffered <= BOUND
            assert 0 <= core.credit.left <= LIMITS.budget
        taken = sum(LIMITS.budget - core.credit.left for core in self.cores)
        assert taken + self.shared.left == 900_000
        assert self.shared.unread == sum(core.buffered for core in self.cores)
        assert self.shared.holders == sum(core.buffered > 0 for core in self.cores)

    def teardown(self) -> None:
        """Whatever happened, everything written arrives in the end."""
        for _ in range(200):
            for side in (0, 1):
                self.accept_all(side)
                self.send(side, 1 << 20)
                self.deliver(side, 1 << 22, [])
            for key in list(self.ends):
                self.read(key, 1 << 20)
        for side, stream_id in self.ends:
            if stream_id not in self.reset and (1 - side, stream_id) in self.sent:
                assert self.got[side, stream_id] == len(self.sent[1 - side, stream_id])

    def accept_all(self, side: int) -> None:
        while (stream := self.cores[side].accept()) is not None:
            self._know(side, stream)


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
