"""`meshnode ls`, `stat` and `rm`: what is behind links, and letting go of it."""

from __future__ import annotations

import json
import stat as stat_bits

import click

from ..errors import EXIT_FAILED, EXIT_OK
from ..node.api.error_json import error_from_json
from ..node.api.text_paths import text_of_path
from . import text
from .arguments import check_inner_path, check_link, check_links
from .client import JsonObject
from .connect import connect
from .failures import tell, without_status
from .invocation import Invocation, global_options, pass_invocation


@click.command(short_help="List the folder behind LINK, or what was put here.")
@click.argument("link", required=False)
@click.argument("path", required=False)
@click.option("-R", "--recursive", is_flag=True, help="Everything below, not one level.")
@global_options
@pass_invocation
def ls(invocation: Invocation, link: str | None, path: str | None, recursive: bool) -> None:
    """List the folder behind LINK (at PATH in it); without a link, what this node has put."""
    wanted = None if link is None else check_link(link)
    inner = None if path is None else check_inner_path(path)
    client = connect(invocation)
    if wanted is None:
        answer = client.call("catalogue", {})
        if invocation.json:
            click.echo(json.dumps(answer))
        else:
            _print_catalogue(_dicts(answer.get("entries")), invocation)
        return
    request: JsonObject = {"link": wanted, "recursive": recursive}
    if inner is not None:
        request["path"] = text_of_path(inner)
    answer = client.call("ls", request)
    if invocation.json:
        click.echo(json.dumps(answer))
        return
    rows = [
        (_mode(entry), text.size(entry.get("size")), _mtime(entry), _name(entry))
        for entry in _dicts(answer.get("entries"))
    ]
    text.table(("mode", "size", "modified", "name"), rows)


@click.command(short_help="Tell what LINK leads to: kind, name, sizes.")
@click.argument("link")
@global_options
@pass_invocation
def stat(invocation: Invocation, link: str) -> None:
    """Tell what LINK leads to: kind, name, sizes, chunks."""
    answer = connect(invocation).call("stat", {"link": check_link(link)})
    if invocation.json:
        click.echo(json.dumps(answer))
        return
    for key, value in answer.items():
        shown = text.visible(value)
        if key in ("size", "stored_bytes"):
            shown = f"{value} ({text.size(value)})"
        elif key == "mode" and isinstance(value, int):
            shown = f"{value:04o}"
        elif key == "mtime_ns" and isinstance(value, int):
            key, shown = "modified", text.when(value / 1e9)
        click.echo(f"{key.replace('_', ' ')}: {shown}")


@click.command(short_help="Let go of what was put here under LINK.")
@click.argument("links", nargs=-1, required=True)
@global_options
@pass_invocation
def rm(invocation: Invocation, links: tuple[str, ...]) -> int:
    """Let go of what was put under LINK on this node, here and on the peers that keep it for us."""
    answer = connect(invocation).call("rm", {"links": check_links(links)})
    outcomes = _dicts(answer.get("links"))
    if invocation.json:
        shown_outcomes = [_shown_outcome(outcome) for outcome in outcomes]
        click.echo(json.dumps(answer | {"links": shown_outcomes}))
    code = EXIT_OK
    for link, outcome in zip(links, outcomes, strict=False):
        shown = text.visible(link.partition("#")[0])  # the key is nobody's business
        if "error" in outcome:
            error = error_from_json(outcome["error"])
            tell(f"{shown}: {error.message}", error.hint)
            code = error.exit_code if code in (EXIT_OK, error.exit_code) else EXIT_FAILED
        elif not invocation.json:
            click.echo(f"removed {shown}: {_removal(outcome)}")
    return code


def _shown_outcome(outcome: JsonObject) -> JsonObject:
    error = outcome.get("error")
    return outcome | {"error": without_status(error)} if isinstance(error, dict) else outcome


def _removal(outcome: JsonObject) -> str:
    """What became of the chunks, in words."""
    if outcome.get("deferred"):
        return (
            f"{text.count(outcome.get('chunks'), 'chunk')}; what nothing else needs goes when the "
            "put that is running has ended"
        )
    here = outcome.get("removed_here")
    told = (
        f"{text.count(here, 'chunk')} ({text.size(outcome.get('removed_bytes'))}) gone from this "
        "node"
    )
    released, away = outcome.get("released"), outcome.get("unreachable")
    if isinstance(released, dict) and released:
        told += f", released on {text.count(len(released), 'peer')}"
    if isinstance(away, list) and away:
        told += f"; {text.count(len(away), 'peer')} could not be reached and " + (
            "is told when it is back" if len(away) == 1 else "are told when they are back"
        )
    return told


def _print_catalogue(entries: list[JsonObject], invocation: Invocation) -> None:
    if not entries:
        invocation.note("nothing was put on this node yet")
        return
    rows = [
        (
            text.when(entry.get("put_at")),
            entry.get("outcome"),
            entry.get("copies"),
            text.size(entry.get("size")),
            entry.get("name"),
            entry.get("link"),
        )
        for entry in entries
    ]
    text.table(("put", "outcome", "copies", "size", "name", "link"), rows)


def _mode(entry: JsonObject) -> str:
    kinds = {"file": stat_bits.S_IFREG, "dir": stat_bits.S_IFDIR, "symlink": stat_bits.S_IFLNK}
    kind, mode = kinds.get(str(entry.get("kind")), 0), entry.get("mode")
    if not isinstance(mode, int):
        return stat_bits.filemode(kind)[0] + "?" * 9
    return stat_bits.filemode(kind | mode & 0o7777)


def _mtime(entry: JsonObject) -> str:
    mtime = entry.get("mtime_ns")
    return text.when(mtime / 1e9) if isinstance(mtime, int) else "-"


def _name(entry: JsonObject) -> str:
    name = str(entry.get("path"))
    if entry.get("kind") == "dir":
        return f"{name}/"
    return f"{name} -> {entry['target']}" if "target" in entry else name


def _dicts(found: object) -> list[JsonObject]:
    """The objects of a list of them; whatever else an answer holds is left out."""
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
