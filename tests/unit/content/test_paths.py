from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError
from meshnode.node.content import DirectoryManifest, Entry, symlinks_leaving
from meshnode.node.content.paths import check_name, check_path, leads_outside


@pytest.mark.parametrize(
    "path",
    [
        b"a",
        b"a/b",
        b".a/..b/...",
        b"\xff\xfe/\n",
        b" ",
        b"a\\b",
        b"c:",
        b"x" * 255,
        b"a/" * 2047 + b"a",
    ],
)
def test_odd_but_sound_paths_are_taken(path: bytes) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        b"", b"/", b"/a", b"a/", b"a//b", b".", b"..", b"./a", b"a/.", b"../a", b"a/../b", b"a/..",
        b"a\0b", b"\0", b"x" * 256, b"a/" * 2048 + b"a",
    ],
)  # fmt: skip
def test_paths_that_could_lead_elsewhere_are_refused(path: bytes) -> None:
    with pytest.raises(FormatError, match="cannot be a path") as caught:
        check_path(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [b"a/b", b"/", b".", b"..", b"a\0", b"x" * 256])
def test_a_name_is_one_part(name: bytes) -> None:
    with pytest.raises(FormatError, match="cannot be the name"):
        check_name(name)


def test_a_name_may_be_empty_or_odd() -> None:
    for name in (b"", b"\xff\n", b"...", b"x" * 255):
        check_name(name)


LINKS = {
    b"here": b".",
    b"file": b"a/b/c",
    b"a/up": b"..",
    b"a/far": b"../..",
    b"a/round": b"../a/../a/b",
    b"root": b"/etc/passwd",
    b"out": b"../x",
    b"back": b"a/../../tree/a",
    b"a/b/top": b"../..",
    b"sneaky": b"a/b/top/..",  # a/b/top is the root, so its parent is outside
    b"through": b"a/b/top/a/b",
    b"loop1": b"loop2",
    b"loop2": b"loop1/x",
    b"viaroot": b"root/x",
    b"long": b"a/" * 2000 + b"../" * 2010,
}
LEAVING = {
    b"a/far", b"root", b"out", b"back", b"sneaky", b"loop1", b"loop2", b"viaroot", b"long",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(LINKS))
def test_a_symlink_leaves_the_tree_or_does_not(path: bytes) -> None:
    assert leads_outside(LINKS, path) is (path in LEAVING)


def test_a_folder_names_its_leaving_symlinks() -> None:
    entries = tuple(Entry(path, "symlink", 0o777, 0, target=LINKS[path]) for path in sorted(LINKS))
    assert symlinks_leaving(DirectoryManifest(b"tree", (), entries)) == LEAVING


PARTS = st.lists(st.sampled_from([b"a", b"b", b"..", b"..", b"."]), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from([b"l", b"a/l", b"a/b/l", b"a/m", b"n"]), PARTS))
def test_symlinks_judged_safe_never_lead_out_on_a_real_file_system(
    tmp_path_factory: pytest.TempPathFactory, targets: dict[bytes, list[bytes]]
) -> None:
    names = [b"l", b"m", b"n"]
    links = {
        path: b"/".join(parts + [names[len(parts) % 3]][: len(parts) % 2])
        for path, parts in targets.items()
    }
    outer = tmp_path_factory.mktemp("outer")
    root = os.fsencode(outer / "deep" / "tree")
    os.makedirs(root + b"/a/b")
    for path, target in links.items():
        os.symlink(target, root + b"/" + path)
    for path in links:
        if not leads_outside(links, path):
            real = Path(os.fsdecode(os.path.realpath(root + b"/" + path)))
            assert real.is_relative_to(Path(os.fsdecode(root)).resolve())
