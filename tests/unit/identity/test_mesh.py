import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, MembershipError, RefusedError, UsageError
from meshnode.node.identity import Mesh

PEER = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
ADDRESS = f"/ip4/192.0.2.7/tcp/4710/p2p/{PEER}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "mesh.json"


def spoil(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value != "drop"}))


def test_a_saved_mesh_reads_back_and_is_private(path: Path) -> None:
    mesh = Mesh.create("home").with_bootstrap([ADDRESS, ADDRESS])
    mesh.save(path)
    assert Mesh.load(path) == mesh
    assert mesh.bootstrap == (ADDRESS,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_meshes_of_one_name_share_nothing() -> None:
    one, two = Mesh.create("home"), Mesh.create("home")
    assert one.id != two.id
    assert len(one.id) == 16
    assert len(one.secret) == 32


def test_what_is_derived_from_the_secret_is_all_different() -> None:
    closed = Mesh("m", bytes(32))
    opened = Mesh("m", bytes(32), open=True)
    derived = [closed.membership_key, opened.membership_key, closed.convergence_secret]
    derived += [closed.secret, closed.id, opened.id]
    assert len({value[:16] for value in derived}) == len(derived)
    assert Mesh("other name", bytes(32)).id == closed.id


def test_the_secret_is_never_shown() -> None:
    mesh = Mesh("m", b"\xab" * 32)
    assert "abab" not in repr(mesh)
    assert "\\xab" not in repr(mesh)


def test_a_node_without_a_mesh_is_told_what_to_run(path: Path) -> None:
    with pytest.raises(MembershipError, match=r"belongs to no mesh.*meshnode join TOKEN"):
        Mesh.load(path)


def test_new_addresses_are_saved_but_another_mesh_never_replaces_one(path: Path) -> None:
    mesh = Mesh.create("home")
    mesh.save(path)
    mesh.with_bootstrap([ADDRESS]).save(path)
    assert Mesh.load(path).bootstrap == (ADDRESS,)
    with pytest.raises(RefusedError, match="mesh 'home' already"):
        Mesh.create("other").save(path)
    assert Mesh.load(path).secret == mesh.secret


def test_a_damaged_mesh_file_is_never_replaced(path: Path) -> None:
    mesh = Mesh.create("home")
    mesh.save(path)
    path.write_text("{")
    with pytest.raises(FormatError):
        mesh.save(path)
    assert path.read_text() == "{"


def test_a_mesh_file_that_others_can_read_is_refused(path: Path) -> None:
    Mesh.create("home").save(path)
    path.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600"):
        Mesh.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret": "00" * 32}, "do not belong together"),
        ({"id": "00" * 16}, "do not belong together"),
        ({"open": True}, "do not belong together"),
        ({"open": 1}, "wrong type"),
        ({"secret": "00"}, "32 bytes"),
        ({"secret": "xy" * 32}, "hexadecimal"),
        ({"name": ""}, "printable"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "drop"}, "lacks a field"),
        ({"extra": 1}, "wrong type"),
        ({"bootstrap": [1]}, "wrong type"),
        ({"bootstrap": ["/ip4/1.2.3.4/tcp/1"]}, "does not lead to a peer"),
        ({"bootstrap": [ADDRESS] * 65}, "at most 64"),
        ({"format": 2}, "Install the newer"),
        ({"format": 10**4000}, "Install the newer"),
        ({"format": "1"}, "wrong type"),
    ],
)
def test_a_wrong_mesh_file_says_what_is_wrong(
    path: Path, changes: dict[str, Any], reason: str
) -> None:
    Mesh.create("home").save(path)
    spoil(path, **changes)
    with pytest.raises(FormatError, match=reason) as caught:
        Mesh.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=100) | st.just(b"[" * 50_000) | st.just(b"9" * 5000))
def test_hostile_files_raise_nothing_but_format_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mesh.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(FormatError):
        Mesh.load(path)


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 65, "\x1b[31m"])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name of a mesh"):
        Mesh.create(name)
