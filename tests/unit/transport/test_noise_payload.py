"""The payload of the handshake: what is believed, skipped and refused in it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.secp256k1 import create_new_key_pair as new_secp256k1_key_pair
from libp2p.security.noise.messages import make_handshake_payload_sig
from libp2p.security.noise.pb import noise_pb2 as pb
from meshnode.errors import FormatError
from meshnode.node.identity import Identity
from meshnode.node.transport.noise_payload import encode_payload, open_payload

STATIC = bytes(range(32))
SIGNER = Identity.from_seed(bytes(range(100, 132)))
PUBLIC_KEY = bytes.fromhex("08011220") + SIGNER.peer_id[6:]
SIGNATURE = SIGNER.sign(b"noise-libp2p-static-key:" + STATIC)


def crafted(key: bytes = PUBLIC_KEY, signature: bytes = SIGNATURE) -> bytes:
    return pb.NoiseHandshakePayload(identity_key=key, identity_sig=signature).SerializeToString()


def test_the_librarys_protobuf_reads_our_payload() -> None:
    payload = pb.NoiseHandshakePayload.FromString(
        encode_payload(SIGNER.private_key, STATIC, ["/yamux/1.0.0", "/other/1"])
    )
    assert payload.identity_key == PUBLIC_KEY
    assert payload.identity_sig == SIGNATURE
    assert list(payload.extensions.stream_muxers) == ["/yamux/1.0.0", "/other/1"]
    assert not payload.extensions.webtransport_certhashes


def test_without_muxers_there_are_no_extensions() -> None:
    ours = encode_payload(SIGNER.private_key, STATIC, [])
    assert not pb.NoiseHandshakePayload.FromString(ours).HasField("extensions")
    assert open_payload(ours, STATIC).muxers == ()


def test_we_read_the_librarys_protobuf() -> None:
    message = pb.NoiseHandshakePayload.FromString(crafted())
    message.extensions.webtransport_certhashes.append(b"\x12\x20" + bytes(32))
    message.extensions.stream_muxers.extend(["/a/1", "/b/1"])
    message.extensions.early_data = b"of no use here"
    payload = open_payload(message.SerializeToString(), STATIC)
    assert payload.peer == SIGNER.peer_id
    assert payload.muxers == ("/a/1", "/b/1")


@pytest.mark.parametrize(
    "unknown",
    [
        "1a03616263",  # field 3, bytes
        "7801",  # field 15, number
        "79" + "00" * 8,  # field 15, 64 bits
        "7d" + "00" * 4,  # field 15, 32 bits
        "0801",  # field 1, but a number
        "2200",  # extensions, empty
        "22020801",  # extensions with a number where certificate hashes should be
        "f8ffffff0f00",  # the highest field number there is
    ],
)
def test_fields_of_later_versions_are_skipped(unknown: str) -> None:
    extra = bytes.fromhex(unknown)
    for data in (crafted() + extra, extra + crafted()):
        assert open_payload(data, STATIC).peer == SIGNER.peer_id


@pytest.mark.parametrize(
    "suffix",
    [
        "22",  # a field without its length
        "2205aabb",  # longer than what is there
        "22ffffffffffffffffff01",  # a length of 2^64 - 1
        "22ffffffffffffffffffff01",  # a number that never ends
        "78" + "ff" * 10 + "01",  # the same, in a field that would be skipped
        "7900",  # 64 bits, of which 8 are there
        "23",  # a group: not in use since long
        "07",  # field 0, and no known type
        "0200",  # field 0
        "8080808010" + "00",  # a field number of 2^29
        "22022205",  # extensions whose own field is cut short
    ],
)
def test_broken_protobuf_is_refused(suffix: str) -> None:
    with pytest.raises(FormatError, match="the message"):
        open_payload(crafted() + bytes.fromhex(suffix), STATIC)


def test_a_signature_of_another_static_key_is_refused() -> None:
    with pytest.raises(FormatError, match="signature is wrong"):
        open_payload(crafted(), bytes(32))


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), SIGNATURE[:-1], SIGNATURE + b"\0", SIGNER.sign(STATIC)],
    ids=["missing", "zero", "short", "long", "without the prefix"],
)
def test_a_wrong_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(FormatError, match="signature is wrong"):
        open_payload(crafted(signature=signature), STATIC)


def test_somebody_elses_identity_is_refused() -> None:
    other = Identity.generate()
    stolen = bytes.fromhex("08011220") + other.peer_id[6:]
    with pytest.raises(FormatError, match="signature is wrong"):
        open_payload(crafted(key=stolen), STATIC)


def test_another_kind_of_identity_is_refused_by_name_although_its_signature_is_right() -> None:
    keys = new_secp256k1_key_pair()
    signature = make_handshake_payload_sig(keys.private_key, _Static())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=r"Secp256k1.*only Ed25519"):
        open_payload(crafted(keys.public_key.serialize(), signature), STATIC)


class _Static:
    def to_bytes(self) -> bytes:
        return STATIC


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (b"", "missing"),
        (PUBLIC_KEY[:-1], "malformed"),
        (PUBLIC_KEY + b"\0", "malformed"),
        (PUBLIC_KEY[2:] + PUBLIC_KEY[:2], "malformed"),  # data before type: another peer id
        (b"\x08\x81\x00" + PUBLIC_KEY[2:], "malformed"),  # type 1 written the long way
        (b"\x08\x00\x12\x00", "RSA"),
        (b"\x08\x03\x12\x00", "ECDSA"),
        (b"\x08\x09\x12\x00", "malformed"),
    ],
)
def test_only_the_one_encoding_of_an_ed25519_key_is_an_identity(key: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        open_payload(crafted(key=key), STATIC)


@given(data=st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_payload_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_payload(data, STATIC)


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_payload_with_one_byte_changed_never_names_another_peer(
    position: int, value: int
) -> None:
    data = bytearray(encode_payload(SIGNER.private_key, STATIC, ["/yamux/1.0.0"]))
    data[position % len(data)] = value
    with contextlib.suppress(FormatError):
        assert open_payload(bytes(data), STATIC).peer == SIGNER.peer_id
