"""`meshnode put`, `get` and `cat`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from ..errors import EXIT_FAILED, EXIT_OK, DestinationError, TransferError, UsageError
from ..node.api.text_paths import text_of_path
from .arguments import (
    MAX_BYTES,
    check_destination,
    check_inner_path,
    check_link,
    check_name,
    check_sources,
)
from .client import Client, JsonObject, OnEvent
from .connect import connect
from .invocation import Invocation, global_options, pass_invocation
from .progress import TransferProgress
from .standard_input import StandardInput
from .transfer_report import print_get, print_put

_STDIN = "-"
_STDIN_NAME = "stdin"


@click.command(short_help="Put files and folders; prints a link for each.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--name", help="Name for what comes from standard input (PATH is -).")
@click.option("--public", is_flag=True, help="Do not seal: every peer can read it.")
@click.option(
    "--replication",
    type=click.IntRange(1, 16),
    help="Nodes that are to have a copy, this one included; else storage.replication.",
)
@click.option(
    "--chunker",
    type=click.Choice(["cdc", "fixed", "lines"]),
    help="How to cut; else ingest.chunker.",
)
@click.option(
    "--compression",
    type=click.Choice(["auto", "zstd", "none"]),
    help="How to shrink; else ingest.compression.",
)
@global_options
@pass_invocation
def put(
    invocation: Invocation,
    paths: tuple[str, ...],
    name: str | None,
    public: bool,
    replication: int | None,
    chunker: str | None,
    compression: str | None,
) -> int:
    """Put files and folders into the mesh; prints one link for each.

    PATH may be - for standard input. In a pipe only the links are printed, one per line.

    A put that was interrupted, by Ctrl-C or a crash, goes on when the same command is run again
    within a day: what is here and on peers is not sent again. The same holds for one that got fewer
    copies than it should (exit code 3).

    How many chunks are sent at once, deadlines and bandwidth limits are settings: see `meshnode
    config show`. `meshnode why` tells what the time went to.
    """
    _check_sources(paths, name)
    options: JsonObject = {
        "public": public,
        "replication": replication,
        "chunker": chunker,
        "compression": compression,
    }
    client = connect(invocation)
    with TransferProgress("put", invocation) as progress:
        report = _put(client, paths, name, options, progress.on_event)
    if invocation.json:
        click.echo(json.dumps(report))
    else:
        print_put(report, invocation, client.peer_names)
    code = report.get("exit_code")
    return code if isinstance(code, int) else EXIT_FAILED


@click.command(short_help="Fetch what LINK leads to, every byte verified.")
@click.argument("link")
@click.option("-o", "--output", metavar="DEST", help="File or folder to write; - for stdout.")
@click.option("-p", "--path", metavar="PATH", help="Only this file or folder inside the link.")
@click.option("-f", "--force", is_flag=True, help="Replace what is at the destination.")
@global_options
@pass_invocation
def get(
    invocation: Invocation, link: str, output: str | None, path: str | None, force: bool
) -> int:
    """Fetch what LINK leads to, into the current folder or DEST, every byte verified.

    A DEST that is a folder takes it under its own name. Nothing has its name before it is whole.

    A get that was interrupted, by Ctrl-C, a crash or peers that went away, goes on where it stopped
    when the same command is run again: what came is kept beside DEST, in .NAME.meshnode-*.part*
    (remove these files to discard it).

    How many chunks are fetched at once, deadlines and bandwidth limits are settings: see `meshnode
    config show`. `meshnode why LINK` tells what the time went to.
    """
    check_link(link)
    if output == _STDIN:
        return _copy_to_stdout(invocation, link, path)
    destination = Path.cwd() / ("." if output is None else check_destination(output))
    request: JsonObject = {
        "link": link,
        "destination": text_of_path(os.path.normpath(destination)),
        "force": force,
    }
    if path is not None:
        request["path"] = text_of_path(check_inner_path(path))
    client = connect(invocation)
    with TransferProgress("get", invocation) as progress:
        report = client.call("get", request, progress.on_event)
    if invocation.json:
        click.echo(json.dumps(report))
    else:
        print_get(report, invocation)
    return EXIT_OK


@click.command(short_help="Write the file behind LINK to standard output.")
@click.argument("link")
@click.argument("path", required=False)
@click.option("--offset", type=click.IntRange(0, MAX_BYTES), default=0, help="First byte wanted.")
@click.option("--length", type=click.IntRange(0, MAX_BYTES), help="Number of bytes wanted.")
@global_options
@pass_invocation
def cat(
    invocation: Invocation, link: str, path: str | None, offset: int, length: int | None
) -> int:
    """Write the file behind LINK (or at PATH in its folder) to standard output, in order, every
    byte verified.

    Nothing is kept of what was written when it is interrupted: go on with --offset, or use `get`.
    """
    return _copy_to_stdout(invocation, link, path, offset, length)


def _copy_to_stdout(
    invocation: Invocation,
    link: str,
    path: str | None,
    offset: int = 0,
    length: int | None = None,
) -> int:
    if invocation.json:
        raise UsageError(
            "Bytes on standard output leave no room for a JSON document.",
            hint="Leave out --json, or get into a file with -o FILE.",
        )
    request: JsonObject = {"link": check_link(link), "offset": offset, "length": length}
    if path is not None:
        request["path"] = text_of_path(check_inner_path(path))
    client = connect(invocation)
    try:
        client.cat(request, _write_to_stdout)
    finally:
        _write_to_stdout(b"")
    return EXIT_OK


def _write_to_stdout(piece: bytes) -> None:
    try:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DestinationError(
            f"Standard output cannot be written: {error.strerror or error}.",
            hint="Free some space, or write to another place.",
        ) from error


def _check_sources(paths: tuple[str, ...], name: str | None) -> None:
    check_sources(paths)
    if name is not None:
        check_name(name)
    if paths.count(_STDIN) > 1 or (_STDIN in paths and len(paths) > 1):
        raise UsageError(
            "Standard input (-) can only be put alone.", hint="Use one command for each."
        )
    if name is not None and _STDIN not in paths:
        raise UsageError(
            "--name only names what comes from standard input.",
            hint="Files and folders keep their own names; to use --name, put `-`.",
        )


def _put(
    client: Client,
    paths: tuple[str, ...],
    name: str | None,
    options: JsonObject,
    on_event: OnEvent,
) -> JsonObject:
    if paths == (_STDIN,):
        if sys.stdin is not None and sys.stdin.isatty():
            click.echo("reading standard input; end it with Ctrl-D", err=True)
        source = StandardInput()
        label = name or _STDIN_NAME
        on_event({"type": "started", "name": label, "total_bytes": None, "files": 1})
        request = options | {"name": text_of_path(label)}
        return client.put_stream(request, source, on_event)
    # Only made absolute, not resolved: a link the user named keeps its own name.
    sources = [text_of_path(os.path.abspath(path)) for path in paths]
    report = client.call("put", options | {"sources": sources}, on_event)
    if not isinstance(report.get("sources"), list):
        raise TransferError("The node's report on the put makes no sense.")
    return report
