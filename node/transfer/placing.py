"""Giving what is whole the name that was asked for, and nothing else. Blocks."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from .part import part_name, remove_tree


def make_root(path: bytes) -> int:
    """Make the folder that becomes the wanted one, for nobody else to look into; returns the mode
    it would have otherwise. It may be there already."""
    try:
        os.mkdir(path)
        mode = stat.S_IMODE(os.lstat(path).st_mode)
    except FileExistsError:
        probe = path + b".mode"
        os.mkdir(probe)
        mode = stat.S_IMODE(os.lstat(probe).st_mode)
        os.rmdir(probe)
    os.chmod(path, 0o700)
    return mode


def put_in_place(staged: bytes, target: Path, *, is_tree: bool, force: bool) -> None:
    """Rename `staged` to `target`; what is there is replaced with `force` only.

    Raises:
        FileExistsError: something is there.
    """
    name = os.fsencode(target)
    if force and is_tree and os.path.lexists(name):
        _swap_tree(staged, target)
    elif force or is_tree or not _link_into_place(staged, name):
        # A folder's rename refuses by itself to replace anything but an empty folder.
        if not force and os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(staged, name)


def _swap_tree(staged: bytes, target: Path) -> None:
    name = os.fsencode(target)
    old = os.fsencode(part_name(target, secrets.token_bytes(8), "old"))
    os.rename(name, old)
    try:
        os.rename(staged, name)
    except OSError:
        os.rename(old, name)
        raise
    remove_tree(old)


def _link_into_place(staged: bytes, target: bytes) -> bool:
    """Give the file its name only if the name is free, in one step; False: not possible here."""
    if not stat.S_ISREG(os.lstat(staged).st_mode):
        return False
    try:
        os.link(staged, target)
    except FileExistsError:
        raise
    except OSError:
        return False  # a file system without hard links
    os.unlink(staged)
    return True


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
