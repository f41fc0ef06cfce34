"""The tables of `docs/scale.md`, as the last whole run gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .tables import Row

_BEGIN = '<!-- written by make sim ARGS="--docs docs/scale.md" -->\n'
_END = "<!-- end of figures -->\n"

_TITLES = {
    "start": "Start, per node: what was asked until all were up, and what it takes here",
    "lookups": "Lookups of random keys by random nodes",
    "announcing": "One node announces 1,000 keys, another one finds them",
    "loss": "Half of all nodes gone at one instant",
    "partition": "Cut in two for an hour",
    "eclipse": "A fifth of all nodes collude around a key",
    "churn": "Members come and go",
}
"""By table, in the order of the page."""

_COLUMNS: dict[str, dict[str, str]] = {
    "start": {
        "start": "start",
        "messages_per_node": "requests",
        "kib_per_node": "KiB",
        "table_peers": "peers in its table",
        "lab_kib_per_node": "memory, KiB",
    },
    "lookups": {
        "mode": "mode",
        "mean_hops": "hops",
        "theory": "steps in theory",
        "most_hops": "most",
        "mean_asked": "asked",
        "overlap": "of the k nearest %",
        "nearest": "nearest %",
        "mean_seconds": "seconds",
    },
    "announcing": {
        "messages": "requests",
        "messages_again": "again",
        "kib": "KiB",
        "seconds": "seconds",
        "mean_storers": "storers",
        "placed": "placed %",
        "find_messages": "requests to find",
        "find_kib": "KiB",
        "find_seconds": "seconds",
        "found": "found %",
    },
    "loss": {
        "mode": "mode",
        "keys": "keys",
        "before": "before %",
        "at_once": "at once %",
        "seconds_at_once": "seconds",
        "second_time": "once more %",
        "seconds_second_time": "seconds",
        "after_an_hour": "an hour later %",
        "table_dead": "of the table dead %",
        "lookups_after": "lookups right %",
    },
    "partition": {
        "mode": "mode",
        "minutes": "minutes",
        "own_side": "own side's keys %",
        "other_side": "the other's %",
        "healed": "all, afterwards %",
        "heal_seconds": "seconds until then",
    },
    "eclipse": {
        "mode": "mode",
        "colluders": "colluders",
        "tries": "keys tried",
        "surrounded": "of the k nearest %",
        "subtle": "subtle",
        "honest_storers": "honest storers",
        "victim_found": "readers that found it %",
        "others_found": "other keys found %",
    },
    "churn": {
        "mode": "mode",
        "upkeep": "upkeep",
        "sessions": "sessions",
        "hours": "hours",
        "mean_up": "up %",
        "restarts": "restarts",
        "found": "found %",
        "worst_found": "worst hour %",
        "kept": "holder down: found %",
        "worst_kept": "worst hour %",
        "slowest_find": "slowest find, s",
        "messages": "requests per node and hour",
        "kib": "KiB",
    },
}


def write_docs(page: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Replace the figures of `page` with those of `tables`."""
    text = page.read_text()
    head, rest = text.split(_BEGIN)
    _, tail = rest.split(_END)
    figures = "\n".join(_section(name, tables[name]) for name in _TITLES if name in tables)
    page.write_text(head + _BEGIN + "\n" + figures + "\n" + _END + tail)


def _section(name: str, rows: Sequence[Row]) -> str:
    columns = {"run": "run", "seed": "seed", "nodes": "N", **_COLUMNS[name], "took": "took, s"}
    titles = [title.removesuffix(" %") for title in columns.values()]
    lines = [f"**{_TITLES[name]}**\n", _line(titles), _line(["---"] * len(titles))]
    for row in sorted(rows, key=lambda row: (row["nodes"], row["run"])):
        lines.append(_line([_cell(row[key], title) for key, title in columns.items()]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object, title: str) -> str:
    if value is None:
        return "never"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if title.endswith(" %"):
        # Never rounded up to all of them.
        return f"{int(value * 1000) / 10:g} %"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
