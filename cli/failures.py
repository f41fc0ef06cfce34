"""How errors reach the user: what happened, what to do next, and the exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..errors import EXIT_FAILED, MeshError, UsageError
from .client import JsonObject
from .text import visible

if TYPE_CHECKING:
    from .invocation import Invocation


def report_error(error: MeshError, invocation: Invocation) -> int:
    """Tell the user, with --json as a document too; the exit code."""
    if invocation.json:
        click.echo(json.dumps({"error": _document(error)}))
    tell(error.message, error.hint)
    if invocation.verbose:
        _tell_traceback(error)
    return error.exit_code


def tell(message: str, hint: str = "") -> None:
    """An error and its next step on standard error."""
    click.echo(f"error: {_paragraph(message)}", err=True)
    if hint:
        click.echo(f"next: {_paragraph(hint)}", err=True)


def report_bug(error: BaseException, invocation: Invocation) -> int:
    """Something nobody foresaw: short by default, everything with -v."""
    message = f"meshnode failed in an unforeseen way: {type(error).__name__}: {error}"
    hint = "Run the command again with -v for the traceback, and report it."
    if invocation.json:
        click.echo(json.dumps({"error": _document(MeshError(message, hint=hint))}))
    tell(message[:2000], "" if invocation.verbose else hint)
    if invocation.verbose:
        _tell_traceback(error)
    return EXIT_FAILED


def _tell_traceback(error: BaseException) -> None:
    import traceback  # start-up time

    click.echo("".join(traceback.format_exception(error)), err=True)


def as_usage_error(error: click.ClickException) -> UsageError:
    """What click has against the command line, as one of our own."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "meshnode"
    return UsageError(error.format_message(), hint=f"See `{command} --help`.")


def without_status(error: JsonObject) -> JsonObject:
    """An error of the API without what only concerns HTTP."""
    return {key: value for key, value in error.items() if key != "http_status"}


def _document(error: MeshError) -> JsonObject:
    from ..node.api.error_json import error_to_json  # only where it is needed

    return without_status(error_to_json(error))


def _paragraph(text: str) -> str:
    # Line breaks of our own messages (lists of config mistakes) stay; everything else is escaped.
    return "\n".join(visible(line) for line in text.splitlines())
