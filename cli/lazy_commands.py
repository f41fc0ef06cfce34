"""Commands by name, each loaded when it is first asked for: a command pays for no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module

import click


class LazyCommands(MutableMapping[str, click.Command]):
    """What a group can be made with in place of its commands.

    Args:
        names_of: by module of this package, the commands that are in it under their own names.
    """

    def __init__(self, names_of: Mapping[str, Sequence[str]]) -> None:
        self._found: dict[str, click.Command | str] = {
            name: module for module, names in names_of.items() for name in names
        }

    def __getitem__(self, name: str) -> click.Command:
        found = self._found[name]
        if isinstance(found, str):
            found = self._found[name] = getattr(import_module(found, __package__), name)
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
