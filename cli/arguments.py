"""What the user typed, checked before a node is asked: a node's own words speak of its API."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import LinkError, UsageError
from .text import visible

MAX_BYTES = 1 << 62
"""The largest offset and length."""
_MAX_LINK_CHARS = 4096
_MAX_PATH_CHARS = 16384
_MAX_NAME_CHARS = 255
_MAX_LINKS = 1000
_MAX_SOURCES = 10_000


def check_link(link: str) -> str:
    """`link`, if it can be one at all; the node reads it closely."""
    if not link.strip():
        raise LinkError(
            "The link is empty.",
            hint="Give one that `meshnode put` printed; in a script, see that the variable is set.",
        )
    if len(link) > _MAX_LINK_CHARS:
        raise LinkError(
            f"{visible(link[:12])!r}... is no link: it has {len(link)} characters.",
            hint="Copy the link again, from its beginning to its end.",
        )
    return link


def check_links(links: Sequence[str]) -> list[str]:
    if len(links) > _MAX_LINKS:
        raise UsageError(
            f"{len(links)} links are too many for one command; at most {_MAX_LINKS}.",
            hint="Use several commands, for instance with `xargs -n 1000`.",
        )
    return [check_link(link) for link in links]


def check_inner_path(path: str) -> str:
    """`path`, if it can name something in the folder behind a link."""
    hint = "Name it from the top of the link, as `meshnode ls -R LINK` shows it."
    if not path:
        raise UsageError("The path inside the link is empty.", hint=hint)
    if len(path) > _MAX_PATH_CHARS:
        raise UsageError(f"The path inside the link has {len(path)} characters.", hint=hint)
    if ".." in path.split("/"):
        raise UsageError(f"'{visible(path)}' leads out of the link: it has '..' in it.", hint=hint)
    return path


def check_sources(paths: Sequence[str]) -> None:
    if "" in paths:
        raise UsageError(
            "A path to put is empty.",
            hint="Name a file or a folder (`.` is the current one); in a script, see that the "
            "variable is set.",
        )
    if len(paths) > _MAX_SOURCES:
        raise UsageError(
            f"{len(paths)} sources are too many for one command; at most {_MAX_SOURCES}.",
            hint="Put the folder they are in, or use several commands.",
        )


def check_name(name: str) -> str:
    """`name`, if it can be that of a file."""
    if not 0 < len(name) <= _MAX_NAME_CHARS or "/" in name or name in (".", ".."):
        shown = visible(name[:80])
        raise UsageError(f"'{shown}' cannot be the name of a file.", hint="Use a plain name.")
    return name


def check_destination(destination: str) -> str:
    if not destination:
        raise UsageError(
            "The destination (-o) is empty.",
            hint="Name a file or a folder; without -o it is the current folder.",
        )
    return destination
