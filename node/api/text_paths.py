"""File names as JSON text and back, byte for byte.

POSIX names are bytes; JSON carries text. Bytes that are not UTF-8 travel as lone surrogates (PEP
383), which JSON writes as `\\udcXX` escapes. UTF-8 is fixed here because client and node may run
under different locales.
"""

from __future__ import annotations

import os


def text_of_path(path: str | bytes | os.PathLike[str]) -> str:
    """The text that stands for `path` in JSON and in URLs."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def path_of_text(text: str) -> str:
    """The path, as this process' file system functions want it, that `text` stands for.

    Raises:
        ValueError: the text stands for no path: a NUL, or a surrogate that encodes no byte.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError("a path cannot contain a NUL character")
    return os.fsdecode(raw)
