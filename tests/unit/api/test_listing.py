"""What ls and stat make of a manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from meshnode.errors import NotFoundError
from meshnode.node.api.listing import describe_manifest, is_folder, list_manifest
from meshnode.node.content import DirectoryManifest, Entry, FileManifest

from tests.unit.api.fake_node import HOSTILE_NAME, file_entry, folder_manifest

FILE = FileManifest(b"one", 7, b"\1" * 32, 0o600, 5_000_000_000, "text/plain", "cdc", (), ())
TREE = folder_manifest(
    Entry(b"a", "dir", 0o755, 0),
    file_entry(b"a-b", 1),
    file_entry(b"a/x", 10),
    file_entry(b"a/y/z", 100),
    file_entry(b"implied/deep/er", 1000),
    Entry(b"link", "symlink", 0o777, 0, target=b"a/x"),
)


def paths(manifest: FileManifest | DirectoryManifest, path: bytes | None, **how: bool) -> list[str]:
    return [entry["path"] for entry in listed(manifest, path, **how)]


def listed(manifest: FileManifest | DirectoryManifest, path: bytes | None, **how: bool) -> Any:
    return list_manifest(manifest, path, **({"recursive": False} | how))["entries"]


def test_one_level_shows_direct_children_and_folders_nobody_listed() -> None:
    assert paths(TREE, None) == ["a", "a-b", "implied", "link"]


def test_a_folder_has_the_size_of_everything_in_it() -> None:
    sizes = {entry["path"]: entry["size"] for entry in listed(TREE, None)}
    assert sizes == {"a": 110, "a-b": 1, "implied": 1000, "link": 0}


def test_a_folder_inside_is_listed_by_its_path() -> None:
    assert paths(TREE, b"a") == ["a/x", "a/y"]
    assert paths(TREE, b"implied/deep") == ["implied/deep/er"]


def test_recursive_shows_everything_below() -> None:
    assert paths(TREE, b"a", recursive=True) == ["a/x", "a/y", "a/y/z"]
    assert len(paths(TREE, None, recursive=True)) == 9


def test_a_file_inside_lists_itself() -> None:
    assert paths(TREE, b"a/x") == ["a/x"]
    assert paths(FILE, None) == ["one"]


@pytest.mark.parametrize("path", [b"a/", b"nope", b"a/xx", b"implie"])
def test_a_path_that_is_not_there_is_not_found(path: bytes) -> None:
    with pytest.raises(NotFoundError):
        list_manifest(TREE, path, recursive=False)


def test_a_path_inside_a_single_file_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="single file"):
        list_manifest(FILE, b"x", recursive=False)


def test_an_empty_folder_has_no_entries() -> None:
    assert paths(folder_manifest(Entry(b"e", "dir", 0o755, 0)), b"e") == []


def test_names_that_are_not_text_survive_json() -> None:
    tree = folder_manifest(file_entry(b"caf\xe9"), file_entry(HOSTILE_NAME))
    back = json.loads(json.dumps(list_manifest(tree, None, recursive=False)))
    names = [e["path"].encode("utf-8", "surrogateescape") for e in back["entries"]]
    assert names == sorted([b"caf\xe9", HOSTILE_NAME])


def test_totals_of_a_file_and_of_a_folder() -> None:
    assert describe_manifest(FILE)["size"] == 7
    told = describe_manifest(TREE)
    assert (told["size"], told["files"], told["folders"], told["symlinks"]) == (1111, 4, 1, 1)


def test_a_folder_is_one_also_when_only_something_below_it_is_listed() -> None:
    folder = folder_manifest(file_entry(b"in/a"), Entry(b"empty", "dir", 0o755, 0))
    assert [is_folder(folder, path) for path in (None, b"in", b"empty")] == [True] * 3
    assert [is_folder(folder, path) for path in (b"in/a", b"i", b"none")] == [False] * 3
