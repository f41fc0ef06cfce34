"""`meshnode start`, `stop`, `status` and `peers`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from ..errors import EXIT_OK, MeshError, RefusedError
from . import text
from .client import JsonObject, NobodyThereError
from .connect import check_initialised, connect_running, http_client
from .daemon import start_detached, stop_node
from .invocation import Invocation, global_options, pass_invocation

if TYPE_CHECKING:
    from ..config import Config
    from .http_client import HttpClient


@click.command(short_help="Run the node of this home.")
@click.option("-d", "--detach", is_flag=True, help="Run in the background, logging to node.log.")
@click.option("--listen", multiple=True, metavar="ADDR", help="Listen here instead (repeatable).")
@click.option("--bootstrap", multiple=True, metavar="ADDR", help="Also contact these members.")
@click.option("--ready-fd", type=int, hidden=True, help="Where to tell that the node is ready.")
@global_options
@pass_invocation
def start(
    invocation: Invocation,
    detach: bool,
    listen: tuple[str, ...],
    bootstrap: tuple[str, ...],
    ready_fd: int | None,
) -> int:
    """Run the node of this home, until Ctrl-C, SIGTERM or `meshnode stop`."""
    config = invocation.config()
    overrides: dict[str, object] = {}
    if listen:
        overrides["network.listen"] = list(listen)
    if bootstrap:
        overrides["network.bootstrap"] = [*config.network.bootstrap, *bootstrap]
    config = config.with_overrides(overrides)
    check_initialised(config)
    _refuse_if_running(http_client(config.paths))
    if detach:
        arguments = [f"--listen={address}" for address in listen]
        arguments += [f"--bootstrap={address}" for address in bootstrap]
        _print_started(start_detached(config, arguments), config, invocation)
        return EXIT_OK

    def on_ready(status: JsonObject) -> None:
        if ready_fd is not None:
            with open(ready_fd, "w", encoding="ascii") as pipe:
                pipe.write(json.dumps(status))
        else:
            _print_started(status, config, invocation)

    from ..node.api.service import run_service  # the network stack

    run_service(config, on_ready)
    return EXIT_OK


@click.command(short_help="Stop the node and wait until it is gone.")
@global_options
@pass_invocation
def stop(invocation: Invocation) -> int:
    """Stop the node of this home and wait until it is gone."""
    pid = stop_node(invocation.paths(), invocation.note)
    if invocation.json:
        click.echo(json.dumps({"was_running": pid is not None, "pid": pid}))
    elif pid is None:
        invocation.note("no node is running here")
    else:
        invocation.note(f"stopped (process {pid})" if pid else "stopped")
    return EXIT_OK


@click.command(short_help="Tell how the running node does.")
@global_options
@pass_invocation
def status(invocation: Invocation) -> int:
    """Tell who and where the running node is, what it holds and whom it sees."""
    answer = connect_running(invocation).call("status", {})
    if invocation.json:
        click.echo(json.dumps(answer))
        return EXIT_OK
    mesh, store = _dict(answer.get("mesh")), _dict(answer.get("store"))
    addresses = answer.get("addresses")
    ready = "ready" if answer.get("ready") else "starting"
    rows: list[tuple[str, object]] = [
        ("node", f"{answer.get('name')} (zone {answer.get('zone')})"),
        ("peer id", answer.get("peer_id")),
        ("mesh", f"{mesh.get('name')} ({mesh.get('id')})" + (" open" if mesh.get("open") else "")),
        ("state", f"{ready}, up {text.duration(answer.get('uptime'))}, pid {answer.get('pid')}"),
        *(("listens", item) for item in (addresses if isinstance(addresses, list) else ())),
        ("peers", f"{answer.get('connected_peers')} of {answer.get('known_peers')} connected"),
        ("holds", f"{text.count(store.get('chunks'), 'chunk')}, "
                  f"{text.size(store.get('stored_bytes'))}"),
        ("room", text.size(store.get("available_bytes"))),
        ("version", answer.get("version")),
    ]  # fmt: skip
    rows += [(name, _flow(answer, name)) for name in ("upload", "download")]
    for label, value in rows:
        click.echo(f"{label + ':':<10}{text.visible(value)}")
    _warn_of_rebuilt_store(answer)
    return EXIT_OK


def _flow(answer: JsonObject, direction: str) -> str:
    """What a node moves just now, and what it may: `1.2 MB/s now, at most 5 MB/s`."""
    flow = _dict(_dict(answer.get("bandwidth")).get(direction))
    told = f"{text.size(flow.get('rate'))}/s now"
    if limit := flow.get("limit"):
        told += f", at most {text.size(limit)}/s"
    if limit := flow.get("per_peer_limit"):
        told += f", at most {text.size(limit)}/s per peer"
    return told


@click.command(short_help="List the members this node knows.")
@global_options
@pass_invocation
def peers(invocation: Invocation) -> int:
    """List the members this node knows."""
    answer = connect_running(invocation).call("peers", {})
    if invocation.json:
        click.echo(json.dumps(answer))
        return EXIT_OK
    found = answer.get("peers")
    rows = [_peer_row(peer) for peer in (found if isinstance(found, list) else ())]
    if not rows:
        invocation.note("no other member is known yet; `meshnode invite` lets one in")
    else:
        text.table(("name", "zone", "state", "rtt", "free", "rate", "peer", "address"), rows)
    return EXIT_OK


def _peer_row(peer: JsonObject) -> tuple[object, ...]:
    rtt, throughput, addresses = peer.get("rtt"), peer.get("throughput"), peer.get("addresses")
    return (
        peer.get("name") or "-",
        peer.get("zone") or "-",
        "connected" if peer.get("connected") else "away",
        f"{rtt * 1000:.1f} ms" if isinstance(rtt, int | float) else "-",
        text.size(peer.get("available_bytes")),
        f"{text.size(throughput)}/s" if throughput else "-",
        peer.get("peer_id"),
        addresses[0] if isinstance(addresses, list) and addresses else "-",
    )


def _refuse_if_running(client: HttpClient) -> None:
    try:
        client.check_listening()
    except NobodyThereError:
        return
    try:
        pid = client.call("status", {}).get("pid")
    except MeshError as error:
        raise RefusedError(
            f"A node is running here already, and does not answer: {error.message}",
            hint="`meshnode stop` ends it.",
        ) from error
    raise RefusedError(
        f"A node is running here already (process {pid}).",
        hint="See `meshnode status`; `meshnode stop` ends it.",
    )


def _print_started(status: JsonObject, config: Config, invocation: Invocation) -> None:
    if invocation.json:
        click.echo(json.dumps(status))
    elif not invocation.quiet:
        addresses = status.get("addresses")
        for address in addresses if isinstance(addresses, list) else ():
            click.echo(f"listens: {text.visible(address)}")
        click.echo(f"peer id: {text.visible(status.get('peer_id'))}")
        click.echo(f"ready (process {status.get('pid')})")
    sys.stdout.flush()
    _warn_of_rebuilt_store(status)
    _warn_if_alone(status, config)


def _warn_of_rebuilt_store(status: JsonObject) -> None:
    if status.get("store_rebuilt") is True:
        click.echo(
            "warning: the store's index was damaged and was made anew from the chunks that are "
            "there.\n"
            "next: see `meshnode ls`; put again what is missing from it or cannot be read",
            err=True,
        )


def _warn_if_alone(status: JsonObject, config: Config) -> None:
    """Say so when there were addresses to try and nobody was found."""
    if status.get("connected_peers") or status.get("known_peers"):
        return
    from ..node.identity import Mesh  # only where it is needed

    try:
        invited = Mesh.load(config.paths.mesh_file).bootstrap
    except MeshError:
        return  # the node that runs has read it; a warning must not end that node
    configured = config.network.bootstrap
    if invited or configured:
        count = len({*invited, *configured})
        where = " and of ".join(
            name
            for name, found in (("the invitation", invited), ("network.bootstrap", configured))
            if found
        )
        nobody = (
            f"none of the {count} addresses of {where} answers"
            if count > 1
            else f"the only address of {where} does not answer"
        )
        click.echo(
            f"warning: {nobody}; this node is alone and goes on trying.\n"
            "next: on a node that runs, `meshnode invite`; here, `meshnode join` with the new "
            "token and a restart, or `meshnode config set network.bootstrap '[\"ADDRESS\"]'`",
            err=True,
        )


def _dict(found: object) -> JsonObject:
    return found if isinstance(found, dict) else {}
