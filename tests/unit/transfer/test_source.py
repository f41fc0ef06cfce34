from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from meshnode.errors import InputError
from meshnode.node.transfer.source import look_at


def test_a_folder_is_walked_with_links_kept_and_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"abc")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("..")
    (root / "sub" / "dangling").symlink_to("nowhere")
    found = look_at(root)
    assert found.is_tree
    assert found.name == b"tree"
    assert [(file.path, file.size) for file in found.files] == [(b"sub/file", 3)]
    assert {node.path: node.target for node in found.nodes} == {
        b"sub": None,
        b"sub/deeper": None,
        b"empty": None,
        b"loop": b"..",
        b"sub/dangling": b"nowhere",
    }
    assert found.failures == []


def test_a_link_named_by_the_user_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"12345")
    (tmp_path / "alias").symlink_to("real")
    found = look_at(tmp_path / "alias")
    assert not found.is_tree
    assert found.name == b"alias"
    assert found.files[0].size == 5


def test_links_that_lead_in_a_circle_are_said_to_do_so(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="circle"):
        look_at(tmp_path / "a")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing-here .*no such file"):
        look_at(tmp_path / "nothing-here")


def test_a_link_to_nothing_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("gone")
    with pytest.raises(InputError, match="does not exist"):
        look_at(tmp_path / "a")


def test_a_pipe_named_by_the_user_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="named pipe") as caught:
        look_at(tmp_path / "pipe")
    assert "put -" in caught.value.hint


def test_special_files_in_a_folder_are_reported_and_the_rest_is_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "sock"))
        (tmp_path / "file").write_bytes(b"x")
        found = look_at(tmp_path)
    assert [file.path for file in found.files] == [b"file"]
    assert {(failure.path, failure.reason) for failure in found.failures} == {
        (b"pipe", "is a named pipe"),
        (b"sock", "is a socket"),
    }


def test_names_are_bytes_whatever_they_hold(tmp_path: Path) -> None:
    names = [b"new\nline", b"not-utf8-\xff\xfe", "umlaut-\u00fc".encode(), b" spaces "]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    assert [file.path for file in look_at(tmp_path).files] == sorted(names)


def test_a_folder_deeper_than_pythons_stack_is_walked(tmp_path: Path) -> None:
    made = [os.path.join(tmp_path, "/".join(["d"] * depth)) for depth in range(1, 1050)]
    for folder in made:
        os.mkdir(folder)
    try:
        assert len(look_at(tmp_path).nodes) == len(made)
    finally:
        for folder in reversed(made):
            os.rmdir(folder)


def test_the_nodes_own_folder_is_left_out_wherever_it_turns_up(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    (home / "mesh.json").write_text("secret")
    (tmp_path / "deep" / "other").write_text("mine")
    (tmp_path / "alias").symlink_to(home)
    found = look_at(tmp_path, [tmp_path / "alias", tmp_path / "not there"])
    assert [file.path for file in found.files] == [b"deep/other"]
    assert found.left_out == [b"deep/home"]
    with pytest.raises(InputError, match="secret"):
        look_at(home, [home])
