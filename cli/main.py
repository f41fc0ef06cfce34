"""The entry point: `meshnode`, its commands, and the boundary where errors become exit codes."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from .. import __version__
from ..errors import EXIT_INTERRUPTED, EXIT_OK, MeshError
from .failures import as_usage_error, report_bug, report_error
from .invocation import Invocation, global_options, pass_invocation
from .lazy_commands import LazyCommands

_EXIT_BROKEN_PIPE = 141  # what a shell shows for a process that SIGPIPE ended
_COMMANDS = LazyCommands(
    {
        ".config_commands": ("config",),
        ".content_commands": ("ls", "rm", "stat"),
        ".mesh_commands": ("init", "invite", "join"),
        ".node_commands": ("peers", "start", "status", "stop"),
        ".transfer_commands": ("cat", "get", "put"),
        ".why_command": ("why",),
    }
)


@click.group(
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="meshnode", message="%(prog)s %(version)s")
@global_options
def cli() -> None:
    """A private, encrypted, self-healing chunk store over machines you own.

    Begin with `meshnode init` on the first machine, `meshnode invite` there, and
    `meshnode join TOKEN` on every other; then `meshnode start` on each.
    """


@cli.command(short_help="Print the version.")
@global_options
@pass_invocation
def version(invocation: Invocation) -> None:
    """Print the version."""
    click.echo(f'{{"version": "{__version__}"}}' if invocation.json else f"meshnode {__version__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code (docs/cli.md lists them)."""
    invocation = Invocation()
    _let_any_name_through(sys.stdout)
    _let_any_name_through(sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not `cli.main`: it has its own ideas about interrupts and broken pipes.
        with cli.make_context("meshnode", list(words), obj=invocation) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except BrokenPipeError:
        # Nobody reads any more; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        # It comes before the options are looked at.
        invocation.json |= "--json" in words
        return report_error(as_usage_error(error), invocation)
    except (KeyboardInterrupt, click.Abort):
        # A terminal has shown ^C where the cursor was.
        click.echo("\ninterrupted" if sys.stderr.isatty() else "interrupted", err=True)
        return EXIT_INTERRUPTED
    except MeshError as error:
        return report_error(error, invocation)
    except Exception as error:  # noqa: BLE001  the last boundary: told, with the traceback by -v
        return report_bug(error, invocation)
    return code if isinstance(code, int) else EXIT_OK


def _let_any_name_through(stream: TextIO) -> None:
    """File names that are not UTF-8 are written as the bytes they are."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="surrogateescape")


# What is loaded by now stays to the end: the collector need not look through it again, least of all
# when the interpreter ends, which was an eighth of a short command's time.
gc.freeze()
