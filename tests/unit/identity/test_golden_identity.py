"""Files and messages of the first version, which every later one must open."""

import json
import shutil
from pathlib import Path

import pytest
from meshnode.node.identity import Identity, Initiator, Invitation, MemberInfo, Mesh, Responder

GOLDEN = Path(__file__).parent / "golden"
PEER = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
ADDRESSES = (
    f"/ip4/192.0.2.7/tcp/4710/p2p/{PEER}",
    f"/dns4/example.org/tcp/4711/p2p/{PEER}",
)
SECRET = bytes(range(100, 132))


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """The golden files as a node has them: version control keeps no file modes."""
    for path in GOLDEN.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
        (tmp_path / path.name).chmod(0o600)
    return tmp_path


def test_the_first_identity_file_opens(private: Path) -> None:
    identity = Identity.load(private / "identity-v1.pem")
    assert identity.private_key == bytes(range(32))
    assert str(identity.peer_id) == PEER


@pytest.mark.parametrize(
    ("file", "mesh_id", "membership_key"),
    [
        (
            "mesh-v1.json",
            "a0816bd3179aacb965d227eccd9931a6",
            "d0613bd6012c1b6194e2879c268d9fd42614cede4bde491914507505152338e7",
        ),
        (
            "mesh-open-v1.json",
            "eb5d5c77ea1e98934b90849d76cbdf44",
            "d3b7f2b4bd334adc0f09ffc73f759566bfff863a03c2ae924e780970cfa392ab",
        ),
    ],
)
def test_the_first_mesh_files_open_with_the_same_derived_values(
    private: Path, file: str, mesh_id: str, membership_key: str
) -> None:
    mesh = Mesh.load(private / file)
    assert mesh == Mesh("Grüße 山", SECRET, "open" in file, ADDRESSES)
    assert mesh.id.hex() == mesh_id
    assert mesh.membership_key.hex() == membership_key
    assert mesh.convergence_secret.hex() == (
        "32bfd4b9a07ba867839f298405ccc8133b5ac9592d9a7034f4b4631fc5d58b9d"
    )


def test_the_first_invitation_opens() -> None:
    token = (GOLDEN / "invitation-v1.txt").read_text()
    invitation = Invitation.parse(token, now=1_799_999_999)
    assert invitation == Invitation(Mesh("Grüße 山", SECRET), ADDRESSES, 1_800_000_000)
    assert invitation.mesh.bootstrap == ADDRESSES
    assert str(invitation) == token.strip()


def test_the_first_handshake_is_spoken_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = json.loads((GOLDEN / "hello-v1.json").read_text())
    anna = Identity.from_seed(bytes(range(32))).peer_id
    bert = Identity.from_seed(bytes(range(1, 33))).peer_id
    mesh = Mesh("Grüße 山", SECRET)
    info = MemberInfo("anna", "attic", "meshnode/0.1.0", ("/ip4/192.0.2.7/tcp/4710",))
    monkeypatch.setattr("os.urandom", lambda size: b"\1" * size)
    initiator = Initiator(mesh, anna, bert, info)
    monkeypatch.setattr("os.urandom", lambda size: b"\2" * size)
    responder = Responder(mesh, bert, anna, MemberInfo("bert", "default", "meshnode/0.1.0"))
    spoken = {"hello": initiator.hello()}
    spoken["answer"] = responder.receive_hello(spoken["hello"])
    spoken["proof"] = initiator.receive_answer(spoken["answer"])
    spoken["verdict"] = responder.receive_proof(spoken["proof"])
    assert {name: message.hex() for name, message in spoken.items()} == golden
