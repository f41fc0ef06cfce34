"""What holds for one run of the command line: the global options and where things go."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..config import Config, Paths

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Invocation:
    """The global options; they may stand before or after the command's name."""

    home: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: int = 0

    def config(self) -> Config:
        """The configuration of the node meant."""
        from ..config import load_config  # start-up time

        return load_config(self.home)

    def paths(self) -> Paths:
        """Where the node meant keeps its files; for this its configuration need not be right."""
        from ..config import find_paths  # start-up time

        return find_paths(self.home, os.environ)

    @property
    def shows_progress(self) -> bool:
        return not (self.json or self.quiet) and sys.stderr.isatty()

    @property
    def tells_details(self) -> bool:
        """Whether somebody reads standard error while it is written."""
        return self.shows_progress

    def note(self, text: str) -> None:
        """Something good to know, on standard error, unless told to be quiet."""
        if not self.quiet:
            click.echo(text, err=True)


pass_invocation = click.make_pass_decorator(Invocation)


def global_options(command: Callable[P, T]) -> Callable[P, T]:
    """Accept the global options on a command and keep them in the `Invocation`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value == "":
        raise UsageError(
            "The home folder (--home) is empty.",
            hint="Name a folder; in a script, see that the variable is set.",
        )
    if parameter.name == "home" and value is not None:
        value = Path(value)
    if value not in (None, False, 0):
        setattr(context.ensure_object(Invocation), str(parameter.name), value)


_option = functools.partial(click.option, expose_value=False, callback=_keep, is_eager=True)
_OPTIONS = (
    _option(
        "--home",
        type=click.Path(),  # a `Path` would take an empty one for the current folder
        metavar="DIR",
        help="Home of the node (default: $MESHNODE_HOME, else the platform's data folder).",
    ),
    _option("--json", is_flag=True, help="Print one JSON document on standard output."),
    _option("-q", "--quiet", is_flag=True, help="No progress, no notes; errors only."),
    _option("-v", "--verbose", count=True, help="Tell more; twice for everything."),
)
