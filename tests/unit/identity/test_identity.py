import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError, MembershipError, RefusedError
from meshnode.node.identity import Identity, verify

SEED = bytes(range(32))
PEM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_created_identity_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.pem"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["identity.pem"]
    assert Identity.load_or_create(path) == made == Identity.load(path)
    assert Identity.load(path).private_key == made.private_key
    assert Identity.generate() != made


def _create(path: str) -> str:
    return str(Identity.load_or_create(Path(path)).peer_id)


def test_processes_that_create_at_once_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        ids = pool.map(_create, [str(tmp_path / "identity.pem")] * 12, chunksize=1)
    assert len(set(ids)) == 1


def test_a_seed_gives_the_peer_id_that_the_network_library_gives() -> None:
    from libp2p.crypto.ed25519 import Ed25519PrivateKey as LibraryKey
    from libp2p.peer.id import ID

    library = ID.from_pubkey(LibraryKey.from_bytes(SEED).get_public_key())
    assert bytes(Identity.from_seed(SEED).peer_id) == library.to_bytes()
    assert str(Identity.from_seed(SEED).peer_id) == library.to_base58()


def test_a_signature_holds_for_its_message_and_signer_only() -> None:
    ours, other = Identity.from_seed(SEED), Identity.generate()
    signature = ours.sign(b"message")
    assert len(signature) == 64
    assert verify(ours.peer_id, b"message", signature)
    assert not verify(ours.peer_id, b"massage", signature)
    assert not verify(other.peer_id, b"message", signature)
    for bad in (b"", signature[:-1], signature + b"x", bytes(64)):
        assert not verify(ours.peer_id, b"message", bad)


def test_a_peer_id_without_an_ed25519_key_verifies_nothing() -> None:
    hashed = PeerId.from_bytes(b"\x12\x20" + bytes(32))
    assert not verify(hashed, b"message", Identity.generate().sign(b"message"))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=100), st.binary(min_size=32, max_size=32), st.binary(max_size=80))
def test_hostile_signatures_and_keys_are_false_and_never_raise(
    message: bytes, key: bytes, signature: bytes
) -> None:
    assert verify(PeerId.from_ed25519(key), message, signature) is False


def test_the_private_key_is_never_shown() -> None:
    identity = Identity.from_seed(SEED)
    assert SEED.hex() not in repr(identity)
    assert "PrivateKey" not in repr(identity)


def test_a_missing_identity_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MembershipError, match=r"identity\.pem does not exist.*meshnode init"):
        Identity.load(tmp_path / "identity.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_an_identity_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "identity.pem", Identity.generate().to_pem(), mode)
    with pytest.raises(RefusedError, match="chmod 600"):
        Identity.load_or_create(path)


def test_a_damaged_or_foreign_key_is_refused_and_left_alone(tmp_path: Path) -> None:
    good = Identity.generate().to_pem()
    curve = generate_private_key(SECP256R1())
    locked = serialization.BestAvailableEncryption(b"pw")
    files = {
        "damaged": [b"", b"\0" * 100, good[: len(good) // 2], good.replace(b"MC4", b"MC5")],
        "not Ed25519": [curve.private_bytes(*PEM, serialization.NoEncryption())],
        "password": [Ed25519PrivateKey.generate().private_bytes(*PEM, locked)],
        "larger": [b"x" * 100_000],
    }
    for reason, contents in files.items():
        for content in contents:
            path = write(tmp_path / "identity.pem", content)
            with pytest.raises(FormatError, match=reason):
                Identity.load_or_create(path)
            assert path.read_bytes() == content


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300), st.booleans())
def test_hostile_files_raise_nothing_but_format_error(
    tmp_path: Path, content: bytes, framed: bool
) -> None:
    if framed:
        content = b"-----BEGIN PRIVATE KEY-----\n" + content + b"\n-----END PRIVATE KEY-----\n"
    path = write(tmp_path / "identity.pem", content)
    with pytest.raises(FormatError):
        Identity.load(path)
