"""Sealing and opening frames: what comes out whole, and what ends the session."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.host import Buffer
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.noise_session import MAX_FRAME, MAX_PLAINTEXT, NoiseSession
from meshnode.node.transport.noise_xx import CipherState

PEER = PeerId.from_ed25519(bytes(32))
SENT = bytes(range(251)) * 800  # 200,800 bytes: three full frames and one that is not


def sessions(*, next_nonce: int = 0, rest: bytes = b"") -> tuple[NoiseSession, NoiseSession]:
    """One that seals and one that opens, and the other way round."""
    one, two = b"1" * 32, b"2" * 32
    left = NoiseSession(PEER, CipherState(one, next_nonce), CipherState(two))
    right = NoiseSession(PEER, CipherState(two), CipherState(one, next_nonce), rest)
    return left, right


def sealed(session: NoiseSession, *pieces: bytes) -> bytes:
    return b"".join(session.seal(pieces))


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = 2 + int.from_bytes(data[:2], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def test_many_frames_are_sealed_and_opened_in_one_call() -> None:
    left, right = sessions()
    wire = sealed(left, SENT)
    assert [len(frame) for frame in frames(wire)] == [50_200 + 18] * 4
    plaintexts, used = right.open(memoryview(wire))
    assert b"".join(plaintexts) == SENT
    assert used == len(wire)


class Placing:
    """Has room for frames of at least `least` bytes."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.placed = bytearray()
        self.taken: list[bytes] = []
        self._room = memoryview(b"")

    def room(self, size: int) -> memoryview | None:
        self._room = memoryview(bytearray(size))
        return self._room if size >= self.least else None

    def filled(self, size: int) -> None:
        assert size == len(self._room)
        self.placed += self._room

    def take(self, plaintext: bytes) -> None:
        self.taken.append(plaintext)


def test_frames_are_opened_where_the_reader_has_room_and_otherwise_given_to_it() -> None:
    left, right = sessions()
    wire = sealed(left, b"head") + sealed(left, SENT) + sealed(left, b"tail")
    reader = Placing(1000)
    assert right.open_to(reader, wire[:-1]) == len(wire) - 4 - 18
    assert right.open_to(reader, wire[-22:]) == 22
    assert reader.placed == SENT
    assert reader.taken == [b"head", b"tail"]


def test_a_forged_frame_ends_the_session_also_where_the_reader_has_room() -> None:
    left, right = sessions()
    wire = bytearray(sealed(left, SENT[:5000]))
    wire[100] ^= 1
    reader = Placing(1000)
    for _ in range(2):
        with pytest.raises(PeerError, match="authentication"):
            right.open_to(reader, wire)
    assert not reader.placed


def test_both_directions_are_independent() -> None:
    left, right = sessions()
    for number in range(3):
        assert right.open(sealed(left, b"to the right %d" % number))[0][0].endswith(b"%d" % number)
    assert left.open(sealed(right, b"to the left"))[0] == [b"to the left"]


def test_small_pieces_travel_together_and_large_ones_alone() -> None:
    left, right = sessions()
    view = memoryview(SENT)
    pieces: list[Buffer] = [
        b"head" * 3,
        b"",
        b"more",
        view[:60_000],
        b"head" * 3,
        view[60_000 : 60_000 + 65_536],
        *[view[start : start + 10_000] for start in range(130_000, 200_000, 10_000)],
    ]
    wire = b"".join(left.seal(pieces))
    plaintexts, _ = right.open(wire)
    assert [len(plain) for plain in plaintexts] == [
        16, 60_000, 12, 32_768, 32_768, 60_000, 10_000,
    ]  # fmt: skip
    assert b"".join(plaintexts) == b"".join(pieces)


@pytest.mark.parametrize("room", [0, 100, 70_000, 300_000])
def test_what_is_sealed_into_a_scratch_is_the_same_whether_it_fits_or_not(room: int) -> None:
    pieces = [SENT[:12], SENT[12:70_000], SENT[70_000:70_100]]
    plain, _ = sessions()
    left, right = sessions()
    scratch = memoryview(bytearray(room))
    for _ in range(3):
        wire = left.seal_into(pieces, scratch)
        assert wire == b"".join(plain.seal(pieces))
        assert b"".join(right.open(wire)[0]) == SENT[:70_100]
        assert (wire.obj is scratch.obj) == (room >= len(wire))
        one = left.seal_into([b"one"], scratch)
        assert one == b"".join(plain.seal([b"one"]))
        assert right.open(one)[0] == [b"one"]
    for nothing in ([], [b""], [b"", b""]):
        assert not left.seal_into(nothing, scratch)


@pytest.mark.parametrize("size", [1, MAX_PLAINTEXT - 1, MAX_PLAINTEXT, MAX_PLAINTEXT + 1])
def test_sizes_around_a_full_frame(size: int) -> None:
    left, right = sessions()
    wire = sealed(left, bytes(size))
    assert len(frames(wire)) == (2 if size > MAX_PLAINTEXT else 1)
    assert b"".join(right.open(wire)[0]) == bytes(size)


def test_nothing_to_send_is_no_frame() -> None:
    # Some implementations take an empty frame for the end of the connection.
    left, _ = sessions()
    assert left.seal([]) == []
    assert left.seal([b"", b""]) == []


def test_sealed_buffers_do_not_change_with_the_next_call() -> None:
    left, right = sessions()
    data = bytearray(b"first")
    first = left.seal([data])
    data[:] = b"other"
    second = left.seal([data])
    assert right.open(b"".join(first + second))[0] == [b"first", b"other"]


def test_empty_frames_of_a_peer_are_taken_and_skipped() -> None:
    _, right = sessions()
    sending = CipherState(b"1" * 32)
    empty = b"\x00\x10" + sending.encrypt(b"")
    full = b"\x00\x11" + sending.encrypt(b"x")
    assert right.open(empty) == ([], 18)
    assert right.open(full) == ([b"x"], 19)


def test_the_beginning_of_a_frame_is_left_to_the_caller() -> None:
    left, right = sessions()
    wire = sealed(left, b"whole") + sealed(left, b"in two parts")
    assert right.open(memoryview(wire)[:40]) == ([b"whole"], 23)
    assert right.open(memoryview(wire)[23:-1]) == ([], 0)
    assert right.open(memoryview(wire)[23:]) == ([b"in two parts"], 30)


@pytest.mark.parametrize("size", range(54))
def test_what_came_with_the_handshake_is_opened_first(size: int) -> None:
    left, _ = sessions()
    wire = sealed(left, b"early") + sealed(left, b"in two parts")
    _, right = sessions(rest=wire[:size])
    early, used = right.open(b"")
    assert used == 0
    assert len(early) == (size >= 23) + (size >= 53)
    later, used = right.open(wire[size:])
    assert used == len(wire) - size
    assert early + later == [b"early", b"in two parts"]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_splits_of_the_stream_do_not_matter(data: st.DataObject) -> None:
    sizes = st.integers(0, 70_000) | st.integers(0, 40)
    writes = data.draw(st.lists(st.lists(sizes, max_size=4), max_size=5))
    left, _ = sessions()
    wire = b"".join(sealed(left, *(SENT[:size] for size in pieces)) for pieces in writes)
    early = data.draw(st.integers(0, len(wire)))
    _, right = sessions(rest=wire[:early])
    got, buffer, position = right.open(b"")[0], bytearray(), early
    while position < len(wire):
        size = data.draw(st.integers(1, 100_000))
        buffer += wire[position : position + size]
        position += size
        with memoryview(buffer) as view:
            plaintexts, used = right.open(view)
        got += plaintexts
        del buffer[:used]
        assert len(buffer) < MAX_FRAME
    assert not buffer
    assert b"".join(got) == b"".join(SENT[:size] for pieces in writes for size in pieces)


def changed(wire: list[bytes]) -> bytes:
    return wire[0] + wire[1][:-1] + bytes([wire[1][-1] ^ 1]) + wire[2]


@pytest.mark.parametrize(
    "attack",
    [
        changed,
        lambda wire: wire[0] + wire[0] + wire[1],
        lambda wire: wire[1] + wire[0],
        lambda wire: wire[0] + wire[2],
        lambda wire: wire[0] + wire[1][:2] + wire[2],
        lambda wire: wire[0] + bytes(2) + wire[1],
        lambda wire: wire[0] + b"\x00\x0f" + bytes(15),
        lambda wire: wire[0] + b"\x00\x10" + bytes(16),
        lambda wire: wire[0] + b"\xff\xff" + bytes(65_535),
    ],
    ids=[
        "changed",
        "replayed",
        "reordered",
        "lost",
        "spliced",
        "no length",
        "shorter than a tag",
        "forged",
        "forged and huge",
    ],
)
def test_a_frame_that_is_not_the_next_one_ends_the_session(
    attack: Callable[[list[bytes]], bytes],
) -> None:
    left, right = sessions()
    wire = frames(b"".join(sealed(left, b"%d" % number) for number in range(3)))
    with pytest.raises(PeerError, match="the encrypted connection broke"):
        right.open(attack(wire))
    # Dead for good: neither the right frame nor anything of ours passes any more.
    with pytest.raises(PeerError):
        right.open(wire[1])
    with pytest.raises(PeerError):
        right.seal([b"data"])


def test_our_own_frames_sent_back_to_us_are_refused() -> None:
    left, _ = sessions()
    with pytest.raises(PeerError, match="authentication"):
        left.open(sealed(left, b"mirror"))


def test_a_frame_that_is_too_short_is_refused_before_its_body_arrives() -> None:
    _, right = sessions()
    with pytest.raises(PeerError, match="too short"):
        right.open(b"\x00\x0f")


def test_a_session_ends_when_its_nonces_are_used_up() -> None:
    left, right = sessions(next_nonce=2**64 - 3)
    assert right.open(sealed(left, SENT[: MAX_PLAINTEXT + 1]))[1] == MAX_FRAME + 19
    with pytest.raises(PeerError, match="used up"):
        left.seal([b"one frame more"])
    with pytest.raises(PeerError, match="used up"):
        left.seal([b"one frame more"])
    with pytest.raises(PeerError, match="used up"):
        right.open(b"\x00\x10" + bytes(16))


@given(junk=st.binary(max_size=500), cut=st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_hostile_bytes_raise_only_our_error_and_give_nothing_unauthentic(
    junk: bytes, cut: int
) -> None:
    left, right = sessions()
    wire = sealed(left, b"early") + sealed(left, b"in two parts")
    try:
        plaintexts, used = right.open(wire[:cut] + junk)
    except PeerError:
        return
    assert [b"early", b"in two parts"][: len(plaintexts)] == plaintexts
    assert used <= cut + len(junk)
