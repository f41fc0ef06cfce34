"""`meshnode why`: what a transfer's time went to, which peers did what, what went wrong."""

from __future__ import annotations

import json

import click

from . import text
from .arguments import check_link
from .client import JsonObject
from .connect import connect
from .invocation import Invocation, global_options, pass_invocation

_LATEST = 10


@click.command(short_help="Tell why a transfer was slow or failed.")
@click.argument("link", required=False)
@click.option(
    "-n", "--count", type=click.IntRange(1, 200), default=_LATEST, help="How many to look at."
)
@global_options
@pass_invocation
def why(invocation: Invocation, link: str | None, count: int) -> None:
    """Tell what the time of a put or get of LINK went to, and which peers did what.

    Without LINK: the latest transfer of this node, and a line for each one before it.
    """
    request: JsonObject = {"count": count}
    if link is not None:
        request["link"] = check_link(link)
    answer = connect(invocation, needs_network=False).call("why", request)
    if invocation.json:
        click.echo(json.dumps(answer))
        return
    found = answer.get("transfers")
    transfers = [t for t in found if isinstance(t, dict)] if isinstance(found, list) else []
    if not transfers:
        invocation.note("no transfer of this node is remembered yet")
        return
    _print_whole(transfers[0])
    if len(transfers) > 1:
        click.echo("before that:")
        for earlier in transfers[1:]:
            click.echo(f"  {_when(earlier)}  {text.visible(earlier.get('headline'))}")


def _print_whole(transfer: JsonObject) -> None:
    click.echo(_when(transfer))
    lines = transfer.get("lines")
    for line in lines if isinstance(lines, list) else ():
        click.echo(text.visible(line))


def _when(transfer: JsonObject) -> str:
    return text.when(transfer.get("began"))
