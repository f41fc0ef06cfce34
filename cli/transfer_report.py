"""What a put or a get came to, in words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import click

from . import text
from .client import JsonObject
from .failures import tell
from .invocation import Invocation

_MAX_FAILURES_SHOWN = 20

_WEAK = (
    "Everything is safe on this node, but fewer nodes than wanted have acknowledged a copy: it "
    "{survives}. Keep this node running; start or connect more nodes "
    "(`meshnode peers` shows who is there), then put the same again: only what is missing is sent."
)
_PARTIAL = (
    "Some entries are left out; the link has all the others. Mend what is said above, then put "
    "the same again: only what is new is sent."
)


def print_put(
    report: JsonObject, invocation: Invocation, peer_names: Callable[[], dict[str, str]]
) -> None:
    """The links on standard output, one per line; everything else on standard error.

    Details only where somebody looks on; failures and what to do about them always.
    """
    sources = report.get("sources")
    names = peer_names() if invocation.tells_details else {}
    for source in sources if isinstance(sources, list) else ():
        _print_source(source, invocation, names)
    if invocation.tells_details:
        _print_summary(report.get("summary"))
    for warning in _list(report.get("warnings")):
        click.echo(f"warning: {text.visible(warning)}", err=True)


def _print_summary(summary: object) -> None:
    """All sources together, where there were several."""
    if not isinstance(summary, dict) or summary.get("total") in (0, 1, None):
        return
    told = [f"{summary.get('successful')} put"]
    told += [
        f"{summary[kind]} {kind}" for kind in ("weak", "partial", "failed") if summary.get(kind)
    ]
    click.echo(
        f"{summary.get('total')} sources: {', '.join(told)}; "
        f"{text.duration(summary.get('seconds'))} in all, "
        f"{text.duration(summary.get('average_seconds'))} on average, "
        f"{text.count(summary.get('retries'), 'retry', 'retries')}",
        err=True,
    )


def _print_source(source: JsonObject, invocation: Invocation, names: Mapping[str, str]) -> None:
    name, outcome = text.visible(source.get("name")), source.get("outcome")
    link = source.get("link")
    if invocation.tells_details and outcome != "failed":
        for line in _source_lines(source, names):
            click.echo(line, err=True)
    if isinstance(link, str):
        click.echo(link)
        sys.stdout.flush()
    _print_failures(source)
    for warning in _list(source.get("warnings")):
        click.echo(f"warning: {name}: {text.visible(warning)}", err=True)
    if outcome == "failed":
        tell(str(source.get("error") or f"{name} could not be put."), str(source.get("hint") or ""))
    elif outcome in ("weak", "partial"):
        lost = source.get("survives_nodes") or 0
        survives = (
            f"survives the loss of {text.count(lost, 'node')}" if lost else "is lost with one node"
        )
        advice = _WEAK.format(survives=survives) if outcome == "weak" else _PARTIAL
        copies = f"{source.get('copies')} of {source.get('wanted_copies')} copies"
        click.echo(f"{outcome}: {name}: {copies}.", err=True)
        click.echo(f"next: {advice}", err=True)


def _source_lines(source: JsonObject, names: Mapping[str, str]) -> list[str]:
    peers, zones = _list(source.get("peers")), _list(source.get("zones"))
    size, seconds = source.get("size"), source.get("seconds")
    files = source.get("files")
    counted = f"{text.count(files, 'file')}, " if source.get("kind") == "folder" else ""
    held = ", ".join(_peer(str(peer), names) for peer in peers) or "no other node"
    survives = f"  survives the loss of {text.count(source.get('survives_nodes'), 'node')}"
    if len(zones) > 1:
        survives += f" or {text.count(source.get('survives_zones'), 'zone')}"
    found = source.get("found_copies")
    saved = f"; {text.count(found, 'copy', 'copies')} were there already" if found else ""
    return [
        f"{text.visible(source.get('name'))}: {source.get('outcome')}",
        f"  {counted}{text.size(size)} in {text.count(source.get('chunks'), 'chunk')} "
        f"({source.get('new_chunks')} new), {text.duration(seconds)}, {text.rate(size, seconds)}",
        f"  copies: {source.get('copies')} of {source.get('wanted_copies')}, here and on {held}; "
        f"zones: {text.visible(', '.join(str(zone) for zone in zones))}",
        f"  sent to peers: {text.size(source.get('bytes_sent'))}{saved}",
        survives,
    ]


def _peer(peer: str, names: Mapping[str, str]) -> str:
    """What it calls itself, if that is the name of one peer only; else the end of its id."""
    name, tail = names.get(peer), text.visible(peer)[-8:]
    if not name:
        return tail
    alone = list(names.values()).count(name) == 1
    return text.visible(name) if alone else f"{text.visible(name)} ({tail})"


def _print_failures(source: JsonObject) -> None:
    failures = _list(source.get("failures"))
    for failure in failures[:_MAX_FAILURES_SHOWN]:
        if isinstance(failure, dict):
            path, reason = text.visible(failure.get("path")), text.visible(failure.get("reason"))
            click.echo(f"left out: {path}: {reason}", err=True)
    if len(failures) > _MAX_FAILURES_SHOWN:
        click.echo(f"... and {len(failures) - _MAX_FAILURES_SHOWN} more (see --json)", err=True)


def print_get(report: JsonObject, invocation: Invocation) -> None:
    """Where it is now; with details where somebody looks on."""
    click.echo(text.visible(report.get("path")))
    if not invocation.tells_details:
        return
    size, seconds = report.get("size"), report.get("seconds")
    files = report.get("files")
    counted = f"{text.count(files, 'file')}, " if report.get("kind") == "folder" else ""
    click.echo(
        f"  {counted}{text.size(size)} in {text.count(report.get('chunks'), 'chunk')}, "
        f"{text.duration(seconds)}, {text.rate(size, seconds)}",
        err=True,
    )
    sources = report.get("bytes_from_peers")
    shares = [
        f"{text.visible(peer)[-8:]} {text.size(nbytes)}"
        for peer, nbytes in (sources.items() if isinstance(sources, dict) else ())
    ]
    if report.get("bytes_from_store"):
        shares.append(f"this node {text.size(report['bytes_from_store'])}")
    click.echo(f"  from: {', '.join(shares) or 'nobody: there are no bytes'}", err=True)


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []
