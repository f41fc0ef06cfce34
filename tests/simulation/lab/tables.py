"""Tables of results on a terminal, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def as_row(seed: int, result: Any, **more: object) -> Row:
    """A result with the seed of its run."""
    return {"seed": seed, **more, **dataclasses.asdict(result)}


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """One line per run; a column per field."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", "\n"), justify="right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=160).print(table)


def _cell(value: object) -> str:
    if value is None:
        return "never"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if value < 100 else f"{value:.0f}"
    return str(value)


def write_json(path: Path, tables: dict[str, list[Row]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables, indent=2) + "\n")
