"""The Noise protocol itself: published vectors, and what a hostile peer can put into messages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from meshnode.errors import FormatError
from meshnode.node.transport.noise_xx import CipherState, XXHandshake

INITIATOR_STATIC = "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"
INITIATOR_EPHEMERAL = "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"
RESPONDER_STATIC = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"
RESPONDER_EPHEMERAL = "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"
PAYLOADS = (
    b"Ludwig von Mises",
    b"Murray Rothbard",
    b"F. A. Hayek",
    b"Carl Menger",
    b"Jean-Baptiste Say",
    "Eugen Böhm von Bawerk".encode("latin-1"),
)


@dataclass(frozen=True)
class Vector:
    """Noise_XX_25519_ChaChaPoly_SHA256 of one published file; keys and payloads are shared."""

    prologue: bytes
    handshake_hash: str
    ciphertexts: tuple[str, ...]


# The transport messages and the first message do not depend on the prologue.
FIRST = (
    "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
    "4c756477696720766f6e204d69736573"
)
TRANSPORT = (
    "96763ed773f8e47bb3712f0e29b3060ffc956ffc146cee53d5e1df",
    "3e40f15f6f3a46ae446b253bf8b1d9ffb6ed9b174d272328ff91a7e2e5c79c07f5",
    "eb3f3515110702e047a6c9da4478b6ead94873c11c0f2d710ddb3f09fce024b3a58502ae3f",
)
VECTORS = {
    # https://github.com/haskell-cryptography/cacophony, vectors/cacophony.txt
    "cacophony": Vector(
        prologue=b"John Galt",
        handshake_hash="c8e5f64e846193be2a834104c2a009868d6c9f3bd3c186299888b488b2f1f58e",
        ciphertexts=(
            FIRST,
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
            "81cbad1f276e038c48378ffce2b65285e08d6b68aaa3629a5a8639392490e5b9"
            "bd5269c2f1e4f488ed8831161f19b7815528f8982ffe09be9b5c412f8a0db50f"
            "8814c7194e83f23dbd8d162c9326ad",
            "c7195ffacac1307ff99046f219750fc47693e23c3cb08b89c2af808b444850a8"
            "0ae475b9df0f169ae80a89be0865b57f58c9fea0d4ec82a286427402f113e4b6"
            "ae769a1d95941d49b25030",
            *TRANSPORT,
        ),
    ),
    # https://github.com/rweather/noise-c, tests/vector/noise-c-basic.txt
    "noise-c": Vector(
        prologue=b"Prologue123",
        handshake_hash="852a28d2146785c54bd8334f4e460c80d7fe4fd0cc5bc0abef2a24a3c4d44d5f",
        ciphertexts=(
            FIRST,
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
            "81cbad1f276e038c48378ffce2b65285e08d6b68aaa3629a5a8639392490e5b9"
            "4a6d8798832d5372f220f161d9c2df035528f8982ffe09be9b5c412f8a0db5d2"
            "1351f20af1370d0bf8ef1a8c59a30e",
            "c7195ffacac1307ff99046f219750fc47693e23c3cb08b89c2af808b444850a8"
            "589981dfbd651e6ff4724a781cc2aa6158c9fea0d4ec82a286427484c5b8c812"
            "3a7a6002b1de9f9775fc97",
            *TRANSPORT,
        ),
    ),
}

# Every point of low order, and the encodings of 0 and 1 above the prime.
# https://cr.yp.to/ecdh.html#validate
LOW_ORDER = (
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
)


def key(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def pair(prologue: bytes = b"") -> tuple[XXHandshake, XXHandshake]:
    initiator = XXHandshake(
        initiator=True,
        static=key(INITIATOR_STATIC),
        ephemeral=key(INITIATOR_EPHEMERAL),
        prologue=prologue,
    )
    responder = XXHandshake(
        initiator=False,
        static=key(RESPONDER_STATIC),
        ephemeral=key(RESPONDER_EPHEMERAL),
        prologue=prologue,
    )
    return initiator, responder


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
def test_both_roles_give_the_published_messages(vector: Vector) -> None:
    sides = pair(vector.prologue)
    ciphertexts = [bytes.fromhex(text) for text in vector.ciphertexts]
    for turn in range(3):
        writer, reader = sides[turn % 2], sides[1 - turn % 2]
        assert writer.write_message(PAYLOADS[turn]) == ciphertexts[turn]
        assert reader.read_message(ciphertexts[turn]) == PAYLOADS[turn]
    keys = [side.split() for side in sides]
    for turn in range(3, 6):
        sending, receiving = keys[turn % 2][0], keys[1 - turn % 2][1]
        assert sending.encrypt(PAYLOADS[turn]) == ciphertexts[turn]
        assert receiving.decrypt(ciphertexts[turn]) == PAYLOADS[turn]
    assert {side.handshake_hash.hex() for side in sides} == {vector.handshake_hash}


def test_each_side_learns_the_others_static_key() -> None:
    initiator, responder = pair()
    responder.read_message(initiator.write_message(b""))
    initiator.read_message(responder.write_message(b""))
    responder.read_message(initiator.write_message(b""))
    assert initiator.remote_static == key(RESPONDER_STATIC).public_key().public_bytes_raw()
    assert responder.remote_static == key(INITIATOR_STATIC).public_key().public_bytes_raw()


@pytest.mark.parametrize("point", LOW_ORDER)
def test_an_ephemeral_key_of_low_order_is_refused_by_both_roles(point: str) -> None:
    initiator, responder = pair()
    first = initiator.write_message(b"")
    responder.read_message(bytes.fromhex(point))
    with pytest.raises(FormatError, match="low order"):
        responder.write_message(b"")
    _, honest = pair()
    honest.read_message(first)
    second = bytes.fromhex(point) + honest.write_message(b"")[32:]
    with pytest.raises(FormatError, match="low order"):
        initiator.read_message(second)


class _PublicKey:
    def public_bytes_raw(self) -> bytes:
        return bytes(32)


class _ZeroKey:
    """A static key whose public half is the zero point: the secret shared with it is zero."""

    def public_key(self) -> _PublicKey:
        return _PublicKey()

    def exchange(self, other: object) -> bytes:
        return bytes(32)


def test_a_static_key_of_low_order_is_refused_although_the_peer_can_compute_with_it() -> None:
    initiator, _ = pair()
    hostile = XXHandshake(
        initiator=False,
        static=_ZeroKey(),  # type: ignore[arg-type]
        ephemeral=key(RESPONDER_EPHEMERAL),
    )
    hostile.read_message(initiator.write_message(b""))
    with pytest.raises(FormatError, match="low order"):
        initiator.read_message(hostile.write_message(b""))


@pytest.mark.parametrize("size", [0, 31, 32, 79, 80, 95])
def test_a_message_cut_short_is_refused(size: int) -> None:
    initiator, responder = pair()
    responder.read_message(initiator.write_message(b""))
    second = responder.write_message(b"")
    assert len(second) == 96
    with pytest.raises(FormatError, match="cut short" if size < 80 else "authentication"):
        initiator.read_message(second[:size])


@pytest.mark.parametrize("position", [0, 31, 32, 79, 80, 95, 99])
def test_a_changed_byte_anywhere_in_the_second_message_is_noticed(position: int) -> None:
    initiator, responder = pair()
    responder.read_message(initiator.write_message(b""))
    second = bytearray(responder.write_message(b"data"))
    second[position] ^= 1
    with pytest.raises(FormatError, match="authentication"):
        initiator.read_message(bytes(second))


def test_another_prologue_is_noticed() -> None:
    initiator, _ = pair(b"one")
    _, responder = pair(b"another")
    responder.read_message(initiator.write_message(b""))
    with pytest.raises(FormatError, match="authentication"):
        initiator.read_message(responder.write_message(b""))


def test_a_message_out_of_turn_is_a_mistake_of_the_caller() -> None:
    initiator, responder = pair()
    with pytest.raises(RuntimeError, match="turn"):
        responder.write_message(b"")
    initiator.write_message(b"")
    with pytest.raises(RuntimeError, match="turn"):
        initiator.write_message(b"")
    with pytest.raises(RuntimeError, match="finished"):
        initiator.split()


def test_the_last_nonce_is_never_used() -> None:
    bounded = CipherState(bytes(32), next_nonce=2**64 - 2)
    peer = CipherState(bytes(32), next_nonce=2**64 - 2)
    assert peer.decrypt(bounded.encrypt(b"last")) == b"last"
    for _ in range(2):
        with pytest.raises(FormatError, match="used up"):
            bounded.encrypt(b"one more")
        with pytest.raises(FormatError, match="used up"):
            bounded.encrypt_into(b"", memoryview(bytearray(16)))
        with pytest.raises(FormatError, match="used up"):
            peer.decrypt(bytes(16))
