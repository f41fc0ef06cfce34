"""Files and folders through real node processes, by the commands people type."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

from scripts.testnet import MESHNODE, Testnet, TestnetNode, open_testnet


def put(node: TestnetNode, *paths: str | Path) -> list[dict[str, Any]]:
    sources: list[dict[str, Any]] = json.loads(node.must("--json", "put", *paths))["sources"]
    return sources


def test_a_file_put_on_one_node_is_got_from_another(
    mesh: Testnet, random_file: Path, tmp_path: Path
) -> None:
    (report,) = put(mesh[1], random_file)
    assert report["outcome"] == "stored"
    assert report["copies"] == 3
    mesh[3].must("get", report["link"], "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == random_file.read_bytes()


def test_a_folder_comes_back_with_its_modes_links_and_odd_names(
    mesh: Testnet, tmp_path: Path
) -> None:
    source = tmp_path / "folder"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty folder").mkdir()
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o750)
    (source / "zero").touch()
    (source / "deep" / "er" / "big").write_bytes(random.randbytes(3_000_000))
    (source / "line\nbreak").write_text("name with a newline")
    Path(os.fsdecode(os.fsencode(source) + b"/latin-\xe9")).write_text("not UTF-8")
    (source / "link").symlink_to("deep/er/big")
    (source / "loop").symlink_to(".")
    (report,) = put(mesh[2], source)
    mesh[3].must("get", report["link"], "-o", tmp_path / "copy")
    assert _tree(tmp_path / "copy") == _tree(source)


def test_several_sources_each_get_their_own_link(mesh: Testnet, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name * 1000)
    reports = put(mesh[1], tmp_path / "one", tmp_path / "two")
    assert [report["name"] for report in reports] == ["one", "two"]
    assert mesh[2].must("cat", reports[1]["link"]) == "two" * 1000


def test_standard_input_and_output_carry_bytes(mesh: Testnet) -> None:
    data = random.randbytes(2_500_000)
    node = mesh[1]
    done = subprocess.run(
        [*MESHNODE, "put", "-"], input=data, capture_output=True, env=node.environment()
    )
    assert done.returncode == 0, done.stderr
    link = done.stdout.decode().strip()
    assert link.startswith("meshnode:")
    out = subprocess.run(
        [*MESHNODE, "get", link, "-o", "-"], capture_output=True, env=mesh[2].environment()
    )
    assert out.stdout == data


def test_ls_and_stat_describe_what_a_link_holds(mesh: Testnet, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("alpha")
    (folder / "b.txt").write_text("beta")
    (report,) = put(mesh[1], folder)
    listing = json.loads(mesh[2].must("--json", "ls", report["link"]))
    assert {entry["path"]: entry["size"] for entry in listing["entries"]} == {
        "a.txt": 5,
        "b.txt": 4,
    }
    assert json.loads(mesh[2].must("--json", "stat", report["link"]))["size"] == 9
    assert mesh[3].must("cat", report["link"], "b.txt") == "beta"


def test_rm_takes_the_copies_back_but_leaves_what_another_file_shares(
    mesh: Testnet, random_file: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "twin.bin"
    twin.write_bytes(random_file.read_bytes())
    first, second = put(mesh[1], random_file, twin)
    mesh[1].must("rm", first["link"])
    mesh[3].must("get", second["link"], "-o", tmp_path / "still")
    assert (tmp_path / "still").read_bytes() == twin.read_bytes()
    before = _chunks(mesh)
    mesh[1].must("rm", second["link"])
    assert all(after < held for after, held in zip(_chunks(mesh), before, strict=True))
    gone = mesh[3].run("get", second["link"], "-o", tmp_path / "gone")
    assert gone.returncode == 4, gone.stderr
    assert not (tmp_path / "gone").exists()


def test_a_file_survives_the_death_of_a_holder(random_file: Path, tmp_path: Path) -> None:
    with open_testnet(4, config={"storage.replication": "2"}) as mesh:
        (report,) = put(mesh[1], random_file)
        assert report["survives_nodes"] == 1
        mesh[1].kill()
        mesh[4].must("get", report["link"], "-o", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == random_file.read_bytes()


def test_without_a_running_node_put_and_get_run_one_for_the_command(
    mesh: Testnet, random_file: Path, tmp_path: Path
) -> None:
    guest = TestnetNode(9, tmp_path / "guest", {})
    token = json.loads(mesh[1].must("--json", "invite"))["token"]
    guest.must("join", token)
    guest.must("config", "set", "network.mdns", "false")
    (report,) = put(guest, random_file)
    assert report["copies"] == 3
    mesh[2].must("get", report["link"], "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == random_file.read_bytes()
    guest.must("get", report["link"], "-o", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == random_file.read_bytes()


def _chunks(mesh: Testnet) -> list[int]:
    return [json.loads(node.must("--json", "status"))["store"]["chunks"] for node in mesh.nodes]


def _tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(root))
            if os.path.islink(path):
                found[key] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[key] = ("folder", info.st_mode)
            else:
                with open(path, "rb") as stream:
                    found[key] = ("file", info.st_mode, info.st_mtime_ns, stream.read())
    return found


def test_names_on_the_command_line_may_be_any_bytes(mesh: Testnet, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/non\xffutf8")
    Path(odd).write_text("odd")
    (tmp_path / "plain").write_text("plain")
    links = mesh[1].must("put", odd, tmp_path / "plain").split()
    assert [mesh[2].must("cat", link) for link in links] == ["odd", "plain"]


def test_links_survive_a_lost_index(tmp_path: Path) -> None:
    node = TestnetNode(1, tmp_path / "home", {"network.mdns": "false", "storage.replication": "1"})
    node.must("init")
    node.configure()
    (tmp_path / "file").write_text("precious")
    link = node.must("put", tmp_path / "file").strip()
    (node.home / "data" / "index.db").write_bytes(os.urandom(20_000))
    listed = json.loads(node.must("--json", "ls"))["entries"]
    assert [entry["link"] for entry in listed] == [link]
    assert node.must("cat", link) == "precious"
