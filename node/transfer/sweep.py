"""Making a folder that an earlier get left usable: what is planned stays, and can be written."""

from __future__ import annotations

import os
import stat

from .part import remove_tree
from .plan import GetPlan, folders_of


def sweep(root: bytes, plan: GetPlan) -> None:
    """Remove from the part of a folder what the plan does not know, and lift the modes that were
    set already. Symlinks are removed: they are made last. Blocks."""
    files = {file.path: file.size for file in plan.files}
    folders = folders_of(plan)
    found = [(root, b"")]
    for path, relative in found:  # grows while it is walked
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            for entry in entries:
                name = os.path.join(relative, entry.name) if relative else entry.name
                if entry.is_dir(follow_symlinks=False) and name in folders:
                    found.append((entry.path, name))
                elif entry.is_file(follow_symlinks=False) and name in files:
                    _lift(entry.path, files[name])
                else:
                    remove_tree(entry.path)


def _lift(path: bytes, size: int) -> None:
    """Make a file writable again, and no longer than it shall be."""
    found = os.lstat(path)
    if stat.S_IMODE(found.st_mode) != 0o600:
        os.chmod(path, 0o600)
    if found.st_size > size:
        os.truncate(path, size)
