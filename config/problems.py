"""Mistakes found in a configuration, gathered so that the user hears of all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .model import SECTIONS, SETTINGS, Setting

_MAX_TOLD = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: `source` is the file or variable it was found in."""

    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


def wrong_value(source: str, setting: Setting, found: object, reason: str) -> Problem:
    because = f" ({reason})" if reason else ""
    text = f"{setting.key} is {show(found)}{because}; allowed: {setting.kind.allowed}."
    return Problem(source, text)


def wrong_section(source: str, section: str, found: object) -> Problem:
    return Problem(source, f"{section} is {show(found)}; it must be a section, [{section}].")


def unknown_key(source: str, key: str, *, is_section: bool = False) -> Problem:
    names = SECTIONS if is_section else SETTINGS
    near = nearest(key, names)
    advice = f"did you mean {near}?" if near else f"there are: {', '.join(_siblings(key, names))}."
    kind = "section" if is_section else "key"
    return Problem(source, f"there is no {kind} {_quoted(key)}; {advice}")


def unknown_variable(variable: str, near: str) -> Problem:
    return Problem("environment", f"no key has the variable {variable[:100]}; did you mean {near}?")


def as_error(problems: Sequence[Problem], *, hint: str = "") -> ConfigError:
    """One error that tells all `problems`, of which there is at least one."""
    lines = [str(problem) for problem in problems[:_MAX_TOLD]]
    if len(problems) > _MAX_TOLD:
        lines.append(f"... and {len(problems) - _MAX_TOLD} more.")
    head = "" if len(lines) == 1 else f"The configuration has {len(problems)} mistakes:\n  "
    return ConfigError(head + "\n  ".join(lines), hint=hint)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be."""
    from difflib import get_close_matches  # start-up time: only needed once something is wrong

    known = list(names)
    section, _, leaf = name[-200:].rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if _section(other) == section}
    leaves = {other.rpartition(".")[2]: other for other in known}
    # The right key in the wrong section, a slip within the section, a slip in both, in that order.
    for choices, cutoff in ((leaves, 1.0), (beside, 0.6), (leaves, 0.75)):
        if matches := get_close_matches(leaf, choices, n=1, cutoff=cutoff):
            return choices[matches[0]]
    return None


def show(found: object) -> str:
    """A found value for an error message, short and on one line, with its type."""
    if isinstance(found, dict):
        return "a section"
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, str | int | float | list | tuple):
        text = repr(found)
        return text if len(text) <= 100 else text[:97] + "..."
    return f"a {type(found).__name__}"


def _siblings(key: str, names: Iterable[str]) -> list[str]:
    known = list(names)
    section = _section(key)
    return [name for name in known if section and _section(name) == section] or list(SECTIONS)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _quoted(key: str) -> str:
    plain = key.replace(".", "").replace("_", "").replace("-", "").isalnum()
    return key if plain and len(key) <= 100 else repr(key[:100])
