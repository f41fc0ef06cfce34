"""The handshake of `/noise`: who is believed to be there, and what a stranger can do to us."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.identity import Identity
from meshnode.node.transport.noise import NoiseHandshake
from meshnode.node.transport.noise_payload import encode_payload
from meshnode.node.transport.noise_xx import XXHandshake

DIALER = Identity.from_seed(b"d" * 32)
LISTENER = Identity.from_seed(b"l" * 32)
YAMUX = ("/yamux/1.0.0",)


def dialer(
    *, expected: PeerId | None = LISTENER.peer_id, muxers: Sequence[str] = YAMUX
) -> NoiseHandshake:
    return NoiseHandshake(DIALER, initiator=True, expected=expected, muxers=muxers)


def listener(*, expected: PeerId | None = None, muxers: Sequence[str] = YAMUX) -> NoiseHandshake:
    return NoiseHandshake(LISTENER, initiator=False, expected=expected, muxers=muxers)


def shake(left: NoiseHandshake, right: NoiseHandshake) -> None:
    for _ in range(2):
        right.receive(left.data_to_send())
        if not left.done:
            left.receive(right.data_to_send())


class Crafted:
    """A peer that follows Noise to the letter and puts what it likes into the messages."""

    def __init__(self, *, initiator: bool) -> None:
        self.static = X25519PrivateKey.generate()
        self.xx = XXHandshake(
            initiator=initiator, static=self.static, ephemeral=X25519PrivateKey.generate()
        )

    def payload(self, identity: Identity = LISTENER, muxers: Sequence[str] = YAMUX) -> bytes:
        public = self.static.public_key().public_bytes_raw()
        return encode_payload(identity.private_key, public, muxers)

    def message(self, payload: bytes) -> bytes:
        message = self.xx.write_message(payload)
        return len(message).to_bytes(2, "big") + message

    def answer(self, frame: bytes, payload: bytes) -> bytes:
        assert len(frame) == 2 + int.from_bytes(frame[:2], "big")
        self.xx.read_message(frame[2:])
        return self.message(payload)


def test_both_sides_learn_who_is_there_and_can_talk() -> None:
    left, right = dialer(), listener()
    shake(left, right)
    assert left.done
    assert right.done
    assert left.peer == LISTENER.peer_id
    assert right.peer == DIALER.peer_id
    wire = left.session().seal([b"hello"])[0]
    assert b"hello" not in wire
    assert right.session().open(wire) == ([b"hello"], len(wire))
    wire = right.session().seal([b"and back"])[0]
    assert left.session().open(wire) == ([b"and back"], len(wire))


def test_no_two_connections_share_a_key() -> None:
    assert dialer().data_to_send() != dialer().data_to_send()
    first, second = (dialer(), listener()), (dialer(), listener())
    shake(*first)
    shake(*second)
    wire = first[0].session().seal([b"for the first"])[0]
    with pytest.raises(PeerError):
        second[1].session().open(wire)


def test_there_is_one_session_only() -> None:
    # A second one would use every nonce a second time.
    left, right = dialer(), listener()
    shake(left, right)
    assert left.session() is left.session()


def test_before_it_is_done_nobody_is_there() -> None:
    handshake = dialer()
    assert not handshake.done
    for early in (lambda: handshake.peer, lambda: handshake.muxer, handshake.session):
        with pytest.raises(RuntimeError, match="not finished"):
            early()


def test_identities_never_travel_in_the_clear() -> None:
    left, right = dialer(), listener()
    first = left.data_to_send()
    right.receive(first)
    second = right.data_to_send()
    left.receive(second)
    for identity in (DIALER, LISTENER):
        assert identity.peer_id[6:] not in first + second + left.data_to_send()


def test_another_peer_than_the_one_dialled_is_refused_before_it_learns_who_dialled() -> None:
    left, right = dialer(expected=DIALER.peer_id), listener()
    right.receive(left.data_to_send())
    with pytest.raises(PeerError, match=f"{LISTENER.peer_id.short}.*{DIALER.peer_id.short}"):
        left.receive(right.data_to_send())
    assert not left.done
    assert left.data_to_send() == b""


def test_a_listener_can_insist_on_a_peer_too() -> None:
    left, right = dialer(), listener(expected=LISTENER.peer_id)
    with pytest.raises(PeerError, match="is there, not"):
        shake(left, right)


@pytest.mark.parametrize("dialled", [True, False])
def test_a_stolen_payload_does_not_prove_its_owner(dialled: bool) -> None:
    """The payload of an honest peer, replayed by somebody with another static key."""
    victim = dialer() if dialled else listener()
    honest, thief = Crafted(initiator=not dialled), Crafted(initiator=not dialled)
    if not dialled:
        victim.receive(thief.message(b""))
    proof = thief.answer(victim.data_to_send(), honest.payload())
    with pytest.raises(PeerError, match="signature is wrong"):
        victim.receive(proof)
    assert not victim.done
    assert victim.data_to_send() == b""


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40])
def test_a_payload_that_is_none_is_refused(payload: bytes) -> None:
    victim = dialer()
    with pytest.raises(PeerError, match="failed the handshake"):
        victim.receive(Crafted(initiator=False).answer(victim.data_to_send(), payload))


def test_after_a_failure_nothing_mends_it() -> None:
    victim, crafted = dialer(), Crafted(initiator=False)
    good = crafted.answer(victim.data_to_send(), crafted.payload())
    with pytest.raises(PeerError):
        victim.receive(b"\x00\x20" + bytes(32))
    with pytest.raises(PeerError):
        victim.receive(good)
    assert not victim.done


# --- early agreement on the muxer -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dials", "listens", "agreed"),
    [
        (["/yamux/1.0.0"], ["/yamux/1.0.0"], "/yamux/1.0.0"),
        (["/a/1", "/b/1"], ["/b/1", "/a/1"], "/a/1"),
        (["/a/1", "/b/1"], ["/c/1", "/b/1"], "/b/1"),
        ([], ["/yamux/1.0.0"], None),
        (["/yamux/1.0.0"], [], None),
        ([], [], None),
    ],
)
def test_the_first_muxer_of_the_dialer_that_both_speak_is_taken(
    dials: list[str], listens: list[str], agreed: str | None
) -> None:
    left, right = dialer(muxers=dials), listener(muxers=listens)
    shake(left, right)
    assert left.muxer == right.muxer == agreed


def test_without_a_common_muxer_there_is_no_connection() -> None:
    with pytest.raises(PeerError, match="no muxer in common"):
        shake(dialer(), listener(muxers=["/mplex/6.7.0"]))
    victim, crafted = listener(), Crafted(initiator=True)
    victim.receive(crafted.message(b""))
    with pytest.raises(PeerError, match="no muxer in common"):
        victim.receive(
            crafted.answer(victim.data_to_send(), crafted.payload(muxers=["/mplex/6.7.0"]))
        )


# --- bytes ----------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20), count=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_the_splits_of_the_stream_do_not_matter(sizes: list[int], count: int) -> None:
    left, right = dialer(), listener()
    got: list[bytes] = []
    waiting = bytearray()

    def arrive(handshake: NoiseHandshake, data: bytes) -> None:
        nonlocal waiting
        turn = 0
        while data:
            size = sizes[turn % len(sizes)]
            turn += 1
            piece, data = data[:size], data[size:]
            if not handshake.done:
                handshake.receive(piece)
                piece = b""
            if handshake.done:
                waiting += piece
                plaintexts, used = handshake.session().open(bytes(waiting))
                del waiting[:used]
                got.extend(plaintexts)

    arrive(right, left.data_to_send())
    arrive(left, right.data_to_send())
    last = left.data_to_send()
    early = [bytes([number]) * 300 for number in range(1, count + 1)]
    arrive(right, last + b"".join(b"".join(left.session().seal([data])) for data in early))
    assert right.done
    assert got == early


def test_data_right_behind_the_handshake_is_not_lost() -> None:
    left, right = dialer(), listener()
    right.receive(left.data_to_send())
    left.receive(right.data_to_send())
    right.receive(left.data_to_send() + left.session().seal([b"early"])[0])
    assert right.session().open(b"") == ([b"early"], 0)


def test_bytes_after_the_handshake_belong_to_the_session() -> None:
    left, right = dialer(), listener()
    shake(left, right)
    with pytest.raises(RuntimeError, match="session"):
        right.receive(b"more")


@pytest.mark.parametrize("size", [0, 1, 31, 33, 4096, 65_535])
def test_the_first_message_is_a_key_and_nothing_else(size: int) -> None:
    with pytest.raises(PeerError, match=f"message of {size} bytes"):
        listener().receive(size.to_bytes(2, "big"))


def test_a_long_message_is_refused_before_it_is_kept() -> None:
    with pytest.raises(PeerError, match="message of 4097 bytes"):
        dialer().receive((4097).to_bytes(2, "big"))
    victim, crafted = listener(), Crafted(initiator=True)
    victim.receive(crafted.message(b""))
    with pytest.raises(PeerError, match="message of 65535 bytes"):
        victim.receive(b"\xff\xff")


def test_a_payload_with_room_for_what_others_put_in_is_taken() -> None:
    victim, crafted = dialer(), Crafted(initiator=False)
    certificate_hashes = b"\x0a\x24" + bytes(36)
    unknown = b"\x22\xc6\x0e" + certificate_hashes * 49  # a second extensions field, 1,862 bytes
    payload = crafted.payload() + unknown
    victim.receive(crafted.answer(victim.data_to_send(), payload))
    assert victim.peer == LISTENER.peer_id


@given(data=st.binary(max_size=400), initiator=st.booleans(), honest_start=st.booleans())
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_raise_only_our_error_and_never_finish(
    data: bytes, initiator: bool, honest_start: bool
) -> None:
    victim = dialer() if initiator else listener()
    if honest_start and not initiator:
        victim.receive(Crafted(initiator=True).message(b""))
    try:
        victim.receive(data)
        victim.receive(data)
    except PeerError:
        assert victim.data_to_send() == b""
    assert not victim.done


@given(position=st.integers(0, 1000), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_one_byte_changed_in_any_message_leaves_nobody_done_and_deceived(
    position: int, flip: int
) -> None:
    left, right = dialer(), listener()
    sent = 0
    sides: list[tuple[NoiseHandshake, NoiseHandshake]] = [(left, right), (right, left)]
    try:
        for turn in range(3):
            source, target = sides[turn % 2]
            data = bytearray(source.data_to_send())
            if sent <= position < sent + len(data):
                data[position - sent] ^= flip
            sent += len(data)
            target.receive(bytes(data))
    except PeerError:
        assert not (left.done and right.done)
        return
    # Nothing was changed, or a length was, and the rest of the message is still awaited.
    assert position >= sent or not right.done
