"""What goes wrong, as a user meets it: the message, the next step, the exit code, nothing lost."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from scripts.testnet import Testnet, TestnetNode, open_testnet


@pytest.fixture(scope="module")
def stranger() -> Iterator[Testnet]:
    """A second mesh of one node."""
    with open_testnet(1, config={"storage.replication": "1"}) as testnet:
        yield testnet


@pytest.fixture
def fresh(tmp_path: Path) -> TestnetNode:
    """A new mesh of one node that is not running."""
    node = TestnetNode(1, tmp_path / "home", {})
    node.must("init", "--name", "fresh")
    node.must("config", "set", "network.listen", '["/ip4/127.0.0.1/tcp/0"]')
    node.must("config", "set", "network.mdns", "false")
    return node


def assert_says(done: CompletedProcess[str], code: int, *words: str) -> None:
    """One paragraph on stderr with these words, a next step, no traceback, this exit code."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    for word in words:
        assert word.lower() in done.stderr.lower(), done.stderr


def test_a_missing_file(mesh: Testnet, tmp_path: Path) -> None:
    assert_says(mesh[1].run("put", tmp_path / "nowhere"), 1, "nowhere", "no such file")


def test_a_file_that_cannot_be_read(mesh: Testnet, tmp_path: Path) -> None:
    # The superuser may read everything, so the unreadable thing is one nobody can read as a file.
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert_says(mesh[1].run("put", path), 1, "pipe")


def test_one_unreadable_entry_leaves_the_rest_stored(mesh: Testnet, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good").write_text("good")
    os.mkfifo(folder / "pipe")
    done = mesh[1].run("put", folder)
    assert done.returncode == 3, done.stderr
    assert "pipe" in done.stderr
    link = done.stdout.split()[0]
    assert mesh[2].must("cat", link, "good") == "good"


def test_a_symbolic_link_that_leads_to_itself(mesh: Testnet, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert_says(mesh[1].run("put", tmp_path / "loop"), 1, "loop")


def test_an_empty_file_is_a_file(mesh: Testnet, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    link = mesh[1].must("put", tmp_path / "empty").strip()
    mesh[2].must("get", link, "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


@pytest.mark.parametrize("damage", ["meshnode:", "meshnode:bafk", "https://example.org/x", "junk"])
def test_a_corrupt_link(mesh: Testnet, tmp_path: Path, damage: str) -> None:
    assert_says(mesh[1].run("get", damage, "-o", tmp_path / "x"), 2, "next:")


def test_a_link_cut_short_in_its_key(mesh: Testnet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("some text")
    link = mesh[1].must("put", tmp_path / "file").strip()
    assert_says(mesh[2].run("get", link[:-3], "-o", tmp_path / "x"), 2, "key")


def test_a_link_with_the_key_of_another_file(mesh: Testnet, tmp_path: Path) -> None:
    links = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        links.append(mesh[1].must("put", tmp_path / name).strip())
    mixed = links[0].split("#")[0] + "#" + links[1].split("#")[1]
    assert_says(mesh[2].run("get", mixed, "-o", tmp_path / "x"), 1, "key")
    assert not (tmp_path / "x").exists()


def test_a_link_from_another_mesh(mesh: Testnet, stranger: Testnet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("only there")
    link = stranger[1].must("put", tmp_path / "file").strip()
    assert_says(mesh[1].run("get", link, "-o", tmp_path / "x"), 4, "mesh")


def test_a_content_id_nobody_has(mesh: Testnet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    link = mesh[1].must("put", tmp_path / "file").strip()
    mesh[1].must("rm", link)
    assert_says(mesh[2].run("get", link, "-o", tmp_path / "x"), 4, "peers")


def test_an_existing_file_is_not_overwritten_without_force(mesh: Testnet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("new")
    link = mesh[1].must("put", tmp_path / "file").strip()
    target = tmp_path / "target"
    target.write_text("precious")
    assert_says(mesh[2].run("get", link, "-o", target), 1, "--force")
    assert target.read_text() == "precious"
    mesh[2].must("get", link, "-o", target, "--force")
    assert target.read_text() == "new"


def test_no_peers_makes_a_put_weak_and_says_so(fresh: TestnetNode, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("lonely")
    done = fresh.run("put", tmp_path / "file")
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "weak" in done.stderr
    assert done.stdout.startswith("meshnode:")


def test_no_peers_makes_an_unknown_get_fail_with_a_reason(
    fresh: TestnetNode, mesh: Testnet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("elsewhere")
    link = mesh[1].must("put", tmp_path / "file").strip()
    assert_says(fresh.run("get", link, "-o", tmp_path / "x"), 4, "no other member")


def test_a_home_without_a_mesh(tmp_path: Path) -> None:
    node = TestnetNode(1, tmp_path / "nothing", {})
    done = node.run("put", "/etc/hostname")
    assert_says(done, 5, "meshnode init", "meshnode join")


def test_a_taken_port(fresh: TestnetNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        fresh.must("config", "set", "network.listen", f'["/ip4/127.0.0.1/tcp/{port}"]')
        assert_says(fresh.run("start", timeout=60), 5, str(port), "network.listen")


def test_a_stale_socket_does_not_keep_a_node_from_starting(fresh: TestnetNode) -> None:
    fresh.socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(fresh.socket))
    fresh.start()
    try:
        fresh.wait_ready()
    finally:
        fresh.signal(15)
        assert fresh.reap(8)


def test_a_second_node_in_the_same_home_is_refused(mesh: Testnet) -> None:
    assert_says(mesh[1].run("start", timeout=60), 5, str(mesh[1].pid))


def test_a_corrupt_configuration_names_file_key_and_remedy(fresh: TestnetNode) -> None:
    config = fresh.home / "config.toml"
    config.write_text("[performance.chunks]\nmax_concurent_uploads = 4\n")
    assert_says(fresh.run("start", timeout=60), 2, "config.toml", "max_concurrent_uploads")
    config.write_text("[node\n")
    assert_says(fresh.run("config", "validate"), 2, "line")


def test_a_corrupt_database_is_set_aside_and_rebuilt(fresh: TestnetNode, tmp_path: Path) -> None:
    fresh.must("config", "set", "storage.replication", "1")
    data = random.randbytes(2_000_000)
    (tmp_path / "file").write_bytes(data)
    link = fresh.must("put", tmp_path / "file").strip()
    database = fresh.home / "data" / "index.db"
    assert database.exists()
    database.write_bytes(b"this is not a database" * 1000)
    for extra in ("index.db-wal", "index.db-shm"):
        (fresh.home / "data" / extra).unlink(missing_ok=True)
    fresh.must("get", link, "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_a_store_over_its_quota_refuses_and_keeps_what_it_has(
    fresh: TestnetNode, tmp_path: Path
) -> None:
    fresh.must("config", "set", "storage.replication", "1")
    fresh.must("config", "set", "storage.quota", "4 MiB")
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(random.randbytes(1_000_000))
    large.write_bytes(random.randbytes(8_000_000))
    link = fresh.must("put", small).strip()
    assert_says(fresh.run("put", large), 5, "quota")
    fresh.must("get", link, "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == small.read_bytes()


def test_a_special_file_is_never_replaced_whatever_force_says(
    mesh: Testnet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("text")
    link = mesh[1].must("put", tmp_path / "file").strip()
    os.mkfifo(tmp_path / "pipe")
    assert_says(mesh[2].run("get", link, "-o", tmp_path / "pipe", "--force"), 1, "pipe")
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)


def test_a_disk_too_small_for_the_file_is_said_and_leaves_nothing(
    mesh: Testnet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(random.randbytes(5_000_000))
    link = mesh[1].must("put", tmp_path / "file").strip()
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small]).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        assert_says(mesh[2].run("get", link, "-o", small / "copy"), 5, "room")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_json_errors_carry_code_and_hint(mesh: Testnet) -> None:
    done = mesh[1].run("--json", "stat", "junk")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "link"
    assert error["hint"]
