"""Sizes in bytes, as people write them: `50 GiB`, `1.5 MB`, `65536`."""

from __future__ import annotations

import re

_UNITS: dict[str, int] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_UNIT_OF_LOWER = {unit.lower(): factor for unit, factor in _UNITS.items()}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z]{1,3})?", re.ASCII)

SIZE_EXAMPLES = 'bytes, or text such as "512 KiB", "1.5 GB", "50 GiB"'


def parse_size(text: str) -> int:
    """Bytes in `text`; a part of a byte is dropped. KB is 1000 bytes, KiB is 1024.

    Raises:
        ValueError: not a size; the text says why.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= 64 else None
    if match is None:
        raise ValueError("not a size")
    number, unit = match.groups()
    factor = _UNIT_OF_LOWER.get((unit or "B").lower())
    if factor is None:
        raise ValueError(f"{unit} is not a unit: {', '.join(_UNITS)}")
    whole, _, decimals = number.partition(".")
    return int(whole + decimals) * factor // int(10 ** len(decimals))


def parse_rate(text: str) -> int:
    """Bytes per second in `text`: a size, with or without `/s`. Raises like `parse_size`."""
    return parse_size(text.strip().removesuffix("/s").rstrip())


def format_rate(rate: int) -> str:
    """The shortest exact way to write `rate` that `parse_rate` reads back: `10 MB/s`."""
    return f"{format_size(rate)}/s"


def format_size(size: int) -> str:
    """The shortest exact way to write `size` that `parse_size` reads back: `1 GiB`, `1500 B`."""
    fitting = [unit for unit, factor in _UNITS.items() if size and size % factor == 0]
    texts = [f"{size // _UNITS[unit]} {unit}" for unit in fitting]
    return min(texts, key=len, default=f"{size} B")
