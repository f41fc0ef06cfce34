"""`meshnode init`, `invite` and `join`: making a mesh and letting machines in."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import click

from ..errors import RefusedError, UsageError
from .client import NobodyThereError
from .connect import check_initialised, connect_running, is_running
from .invocation import Invocation, global_options, pass_invocation

if TYPE_CHECKING:
    from ..config import Config

_EXPIRES = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_EXPIRES_SECS = 366 * 86400
_MAX_BOOTSTRAP = 64


@click.command(short_help="Make a new mesh with this machine as its first node.")
@click.option("--name", default="mesh", show_default=True, help="What to call the mesh.")
@click.option("--open", "is_open", is_flag=True, help="Let in anyone who knows the mesh's id.")
@global_options
@pass_invocation
def init(invocation: Invocation, name: str, is_open: bool) -> None:
    """Make a new mesh with this machine as its first node."""
    from ..node.identity import Identity, Mesh  # start-up time

    config = invocation.config()
    if config.paths.mesh_file.exists():
        present = Mesh.load(config.paths.mesh_file)
        raise RefusedError(
            f"This node belongs to the mesh {present.name!r} already "
            f"({config.paths.mesh_file}); nothing was changed.",
            hint="Go on with `meshnode start`, or make another node with another --home.",
        )
    mesh = Mesh.create(name, is_open)
    _make_home(config)
    identity = Identity.load_or_create(config.paths.identity_file)
    mesh.save(config.paths.mesh_file)
    if invocation.json:
        told = {
            "mesh": {"name": mesh.name, "id": mesh.id.hex(), "open": mesh.open},
            "peer_id": str(identity.peer_id),
            "home": str(config.paths.home),
        }
        click.echo(json.dumps(told))
        return
    click.echo(f"mesh:    {mesh.name} ({mesh.id.hex()}){' open' if mesh.open else ''}")
    click.echo(f"peer id: {identity.peer_id}")
    click.echo(f"home:    {config.paths.home}")
    invocation.note(
        "next: `meshnode start` here, then `meshnode invite` for each machine to let in"
    )


@click.command(short_help="Print a token that lets another machine join.")
@click.option("--expires", default="24h", show_default=True, help="For how long: 30m, 24h, 7d.")
@global_options
@pass_invocation
def invite(invocation: Invocation, expires: str) -> None:
    """Print a token that lets another machine join this mesh.

    The token holds the mesh's secret: hand it over as you would a password.
    """
    import time

    from ..node.identity import Identity, Invitation, Mesh

    seconds = _expires_seconds(expires)
    config = invocation.config()
    check_initialised(config)
    mesh = Mesh.load(config.paths.mesh_file)
    peer_id = Identity.load(config.paths.identity_file).peer_id
    addresses = _own_addresses(invocation, config, str(peer_id))
    deadline = int(time.time()) + seconds
    token = str(Invitation(mesh, addresses, deadline))
    if invocation.json:
        told = {"token": token, "addresses": list(addresses), "expires": deadline}
        click.echo(json.dumps(told))
        return
    invocation.note(
        f"This token is a secret: whoever has it can join {mesh.name!r} and read what its "
        f"members share. It is good for {expires}.\n"
        "next: on the other machine, `meshnode join TOKEN`"
    )
    click.echo(token)


@click.command(short_help="Make this machine a node of the mesh TOKEN is from.")
@click.argument("token")
@global_options
@pass_invocation
def join(invocation: Invocation, token: str) -> None:
    """Make this machine a node of the mesh that TOKEN is from. Needs no network yet."""
    from ..node.identity import Identity, Invitation, Mesh

    invitation = Invitation.parse(token)
    config = invocation.config()
    mesh = invitation.mesh
    if config.paths.mesh_file.exists():
        present = Mesh.load(config.paths.mesh_file)
        if present.id == mesh.id:
            known = [*invitation.addresses, *present.bootstrap]
            mesh = present.with_bootstrap(known[:_MAX_BOOTSTRAP])
    _make_home(config)
    identity = Identity.load_or_create(config.paths.identity_file)
    mesh.save(config.paths.mesh_file)
    running = is_running(invocation)
    if invocation.json:
        told = {
            "mesh": {"name": mesh.name, "id": mesh.id.hex(), "open": mesh.open},
            "peer_id": str(identity.peer_id),
            "bootstrap": list(mesh.bootstrap),
            "restart_needed": running,
        }
        click.echo(json.dumps(told))
        return
    click.echo(f"joined:  {mesh.name} ({mesh.id.hex()})")
    click.echo(f"peer id: {identity.peer_id}")
    if running:
        invocation.note(
            "The node that runs here takes this up at its next start.\n"
            "next: `meshnode stop && meshnode start --detach`"
        )
    else:
        invocation.note("next: `meshnode start`")


def _make_home(config: Config) -> None:
    from ..config import default_config_text
    from ..config.durable import create_file

    create_file(config.paths.config_file, default_config_text().encode("utf-8"))


def _own_addresses(invocation: Invocation, config: Config, peer_id: str) -> tuple[str, ...]:
    """Where the newcomer can reach this node, each address with our peer id at its end.

    Raises:
        UsageError: nothing is known that could be dialled.
    """
    from ..config.addresses import parse_address

    try:
        status = connect_running(invocation).call("status", {})
        told = status.get("addresses")
        found = [str(address) for address in told] if isinstance(told, list) else []
    except NobodyThereError:
        found = list(config.network.announce or config.network.listen)
    usable: list[str] = []
    for address in found:
        try:
            parsed = parse_address(address)
        except ValueError:
            continue
        if parsed.is_dialable:
            usable.append(address if parsed.peer else f"{address}/p2p/{peer_id}")
    if not usable:
        raise UsageError(
            "This node knows no address that another machine could dial, so a token would lead "
            "nowhere.",
            hint="Start it first (`meshnode start --detach`), or say where it can be reached: "
            "meshnode config set network.announce '[\"/ip4/ADDRESS/tcp/4710\"]'",
        )
    return tuple(dict.fromkeys(usable))


def _expires_seconds(text: str) -> int:
    match = _EXPIRES.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_EXPIRES_SECS:
        raise UsageError(
            f"{text[:40]!r} is not a time to expire.",
            hint="Use a number with s, m, h, d or w, up to a year: 30m, 24h, 7d.",
        )
    return seconds
