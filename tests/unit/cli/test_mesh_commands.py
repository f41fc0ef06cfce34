"""init, invite, join and config: what they write and what they refuse."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from meshnode.node.identity import Identity, Invitation, Mesh

from tests.unit.api.fake_node import PEER, FakeNode
from tests.unit.cli.conftest import Run


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}


def test_init_makes_a_home_that_is_private(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    done = run("--home", home, "init", "--name", "friends")
    assert done.code == 0
    mesh = Mesh.load(home / "mesh.json")
    assert mesh.name == "friends"
    assert mesh.id.hex() in done.out
    assert str(Identity.load(home / "identity.pem").peer_id) in done.out
    assert "meshnode start" in done.err
    assert (home / "config.toml").exists()
    for name in ("mesh.json", "identity.pem"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_init_never_prints_the_secret(run: Run, home: Path) -> None:
    done = run("--json", "init")
    secret = Mesh.load(home / "mesh.json").secret.hex()
    assert secret not in done.out + done.err
    assert json.loads(done.out)["mesh"]["open"] is False


def test_init_refuses_where_a_mesh_is_and_changes_nothing(run: Run, home: Path) -> None:
    run("init", "--name", "first")
    before = files(home)
    done = run("init", "--name", "second")
    assert done.code == 5
    assert "first" in done.err
    assert files(home) == before


def test_init_keeps_a_configuration_that_is_there(run: Run, home: Path) -> None:
    (home / "config.toml").write_text('[node]\nname = "mine"\n')
    run("init")
    assert (home / "config.toml").read_text() == '[node]\nname = "mine"\n'


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", " x"])
def test_init_refuses_a_name_that_cannot_be_shown(run: Run, home: Path, name: str) -> None:
    assert run("init", "--name", name).code == 2
    assert files(home) == {}


def test_invite_without_a_node_uses_the_configured_address(run: Run, home: Path) -> None:
    run("init")
    run("config", "set", "network.announce", '["/dns/example.org/tcp/4710"]')
    done = run("invite", "--expires", "30m")
    assert done.code == 0
    invitation = Invitation.parse(done.out)
    peer = Identity.load(home / "identity.pem").peer_id
    assert tuple(invitation.addresses) == (f"/dns/example.org/tcp/4710/p2p/{peer}",)
    assert "secret" in done.err


def test_invite_with_a_node_uses_the_addresses_it_has(run: Run, served: FakeNode) -> None:
    run("init")
    done = run("--json", "invite")
    told = json.loads(done.out)
    assert told["addresses"] == [f"/ip4/127.0.0.1/tcp/4710/p2p/{PEER}"]
    assert list(Invitation.parse(told["token"]).addresses) == told["addresses"]


def test_invite_refuses_to_print_a_token_that_leads_nowhere(run: Run, home: Path) -> None:
    run("init")
    done = run("invite")
    assert (done.code, done.out) == (2, "")
    assert "network.announce" in done.err


@pytest.mark.parametrize("expires", ["", "24", "0h", "-1h", "h", "1y", "999999d"])
def test_invite_refuses_an_expiry_that_makes_no_sense(run: Run, home: Path, expires: str) -> None:
    run("init")
    assert run("invite", f"--expires={expires}").code == 2


def token(run: Run, home: Path) -> str:
    run("--home", home, "init", "--name", home.name)
    run("--home", home, "config", "set", "network.announce", '["/ip4/192.0.2.1/tcp/1"]')
    return run("--home", home, "--quiet", "invite").out.strip()


def test_join_makes_this_home_a_member_without_a_network(
    run: Run, home: Path, tmp_path: Path
) -> None:
    done = run("join", token(run, tmp_path / "first"))
    assert done.code == 0
    ours, theirs = Mesh.load(home / "mesh.json"), Mesh.load(tmp_path / "first" / "mesh.json")
    assert (ours.id, ours.secret) == (theirs.id, theirs.secret)
    assert ours.bootstrap[0].startswith("/ip4/192.0.2.1/tcp/1/p2p/")
    assert "meshnode start" in done.err


def test_joining_the_same_mesh_again_adds_addresses_and_keeps_the_identity(
    run: Run, home: Path, tmp_path: Path
) -> None:
    invitation = token(run, tmp_path / "first")
    run("join", invitation)
    peer = Identity.load(home / "identity.pem").peer_id
    assert run("join", invitation).code == 0
    assert Identity.load(home / "identity.pem").peer_id == peer
    assert len(Mesh.load(home / "mesh.json").bootstrap) == 1


def test_joining_another_mesh_is_refused_and_changes_nothing(
    run: Run, home: Path, tmp_path: Path
) -> None:
    run("join", token(run, tmp_path / "first"))
    before = files(home)
    done = run("join", token(run, tmp_path / "second"))
    assert done.code == 5
    assert files(home) == before


def test_a_mistyped_token_is_refused_and_nothing_is_made(
    run: Run, home: Path, tmp_path: Path
) -> None:
    good = token(run, tmp_path / "first")
    for bad in ("junk", good[:-4], good.replace("e", "f", 5)):
        assert run("join", bad).code == 2
    assert files(home) == {}


def test_config_set_is_read_back_by_get_and_show(run: Run, home: Path) -> None:
    assert run("config", "set", "storage.replication", "2").code == 0
    assert run("config", "get", "storage.replication").out == "2\n"
    assert json.loads(run("config", "get", "storage.replication", "--json").out) == {
        "key": "storage.replication",
        "value": 2,
        "origin": "file",
    }
    assert "replication = 2" in run("config", "show").out


def test_config_get_prints_texts_without_quotes(run: Run, home: Path) -> None:
    run("config", "set", "node.name", "my node")
    assert run("config", "get", "node.name").out == "my node\n"


def test_config_set_can_mend_a_file_that_is_wrong_elsewhere_only_as_a_whole(
    run: Run, home: Path
) -> None:
    (home / "config.toml").write_text("[storage]\nreplication = 99\n")
    assert run("config", "validate").code == 2
    assert run("config", "set", "storage.replication", "2").code == 0
    assert run("config", "validate").code == 0


@pytest.mark.parametrize(
    "arguments", [["get", "no.such"], ["set", "storage.replication", "many"], ["set", "nope", "1"]]
)
def test_config_refuses_what_it_does_not_know(run: Run, home: Path, arguments: list[str]) -> None:
    assert run("config", *arguments).code == 2
    assert not (home / "config.toml").exists()


def test_config_path_names_the_file(run: Run, home: Path) -> None:
    assert run("config", "path").out == f"{home / 'config.toml'}\n"


def test_config_show_running_asks_the_node(run: Run, served: FakeNode) -> None:
    run("config", "set", "storage.replication", "2")
    assert "storage.replication = 3  # default" in run("config", "show", "--running").out
