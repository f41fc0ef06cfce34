"""`meshnode config`: show, get, set, validate, path."""

from __future__ import annotations

import json

import click

from .connect import connect_running, is_running
from .invocation import Invocation, global_options, pass_invocation


@click.group(short_help="Look at and change the configuration.")
@global_options
def config() -> None:
    """Look at and change the configuration (keys: docs/configuration.md)."""


@config.command(short_help="Print every key, its value and its origin.")
@click.option("--running", is_flag=True, help="What the running node has, not what the file says.")
@global_options
@pass_invocation
def show(invocation: Invocation, running: bool) -> None:
    """Print every key with its value and where that comes from."""
    from ..config import entries, render

    if running:
        _show_running(invocation)
        return
    settings = invocation.config()
    if invocation.json:
        told = {e.setting.key: {"value": e.value, "origin": e.origin} for e in entries(settings)}
        document = {"config_file": str(settings.paths.config_file), "settings": told}
        click.echo(json.dumps(document))
    else:
        click.echo(render(settings), nl=False)


def _show_running(invocation: Invocation) -> None:
    answer = connect_running(invocation).call("config", {})
    if invocation.json:
        click.echo(json.dumps(answer))
        return
    settings = answer.get("settings")
    for key, told in settings.items() if isinstance(settings, dict) else ():
        click.echo(f"{key} = {json.dumps(told['value'])}  # {told['origin']}")


@config.command(short_help="Print the value of KEY.")
@click.argument("key")
@global_options
@pass_invocation
def get(invocation: Invocation, key: str) -> None:
    """Print the value of KEY."""
    from ..config import get_entry

    entry = get_entry(invocation.config(), key)
    if invocation.json:
        told = {"key": key, "value": entry.value, "origin": entry.origin}
        click.echo(json.dumps(told))
    elif isinstance(entry.value, str):
        click.echo(entry.value)
    else:
        click.echo(entry.text)


@config.command("set", short_help="Write KEY = VALUE into the file.")
@click.argument("key")
@click.argument("value")
@global_options
@pass_invocation
def set_(invocation: Invocation, key: str, value: str) -> None:
    """Write KEY = VALUE into the configuration file; comments stay."""
    from ..config import set_value

    # Not through `Invocation.config`: a mistake in the file must not keep it from being mended.
    path = invocation.paths().config_file
    set_value(path, key, value)
    if invocation.json:
        click.echo(json.dumps({"key": key, "config_file": str(path)}))
        return
    if is_running(invocation):
        invocation.note("note: the running node takes this up at its next start")


@config.command(short_help="Check the file and the environment.")
@global_options
@pass_invocation
def validate(invocation: Invocation) -> None:
    """Check the file and the environment; tell every mistake."""
    settings = invocation.config()
    path = settings.paths.config_file
    if invocation.json:
        click.echo(json.dumps({"valid": True, "config_file": str(path)}))
    elif path.exists():
        invocation.note(f"{path} is valid")
    else:
        invocation.note(f"{path} does not exist; the defaults hold")


@config.command(short_help="Print where the file is (or would be).")
@global_options
@pass_invocation
def path(invocation: Invocation) -> None:
    """Print where the configuration file is (or would be)."""
    found = invocation.paths().config_file
    click.echo(json.dumps({"config_file": str(found)}) if invocation.json else str(found))
