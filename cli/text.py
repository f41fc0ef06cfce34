"""Words, sizes and tables for people; one line per thing in a pipe.

Names come from files and peers and may be hostile: no control character, no escape sequence and no
text direction mark reaches the terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")


def visible(text: object) -> str:
    """`text` as one line of printable characters; others as escapes, lost bytes as `\\xNN`."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, PEP 383
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def size(nbytes: object) -> str:
    """Bytes in the largest fitting decimal unit, three digits: "12.3 MB"."""
    if not isinstance(nbytes, int | float):
        return "-"
    if nbytes < 1000:
        return f"{int(nbytes)} B"
    value = float(nbytes)
    for unit in _UNITS:
        value /= 1000
        if value < 999.95 or unit == _UNITS[-1]:
            break
    return f"{value:.{1 if value < 99.95 else 0}f} {unit}"


def rate(nbytes: object, seconds: object) -> str:
    """Bytes per second, or "-" when too short to tell."""
    if isinstance(nbytes, int) and isinstance(seconds, int | float) and seconds > 0.001:
        return f"{size(nbytes / seconds)}/s"
    return "-"


def duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock


def when(unix_seconds: object) -> str:
    """Local date and time of a time stamp."""
    if not isinstance(unix_seconds, int | float):
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_seconds))
    except (OverflowError, ValueError, OSError):
        return "-"


def count(number: object, one: str, many: str = "") -> str:
    """ "1 chunk", "2 chunks"."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows: a table on a terminal, tab-separated lines without headings in a pipe."""
    cells = [[visible(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            click.echo("\t".join(row))
        return
    from rich import box  # start-up time
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    # As wide as it needs to be: the terminal wraps a long link so that it can still be copied.
    console = Console(width=_ANY_WIDTH)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().rstrip().splitlines():
        click.echo(line.rstrip())


_ANY_WIDTH = 10_000
_NUMBERS = frozenset({"size", "copies", "chunks", "rtt", "free", "rate", "failed"})
