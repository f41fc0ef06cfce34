"""Writing configuration files: the first one, and single keys with the user's comments kept."""

from __future__ import annotations

import os
import re
import stat
import textwrap
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .durable import replace_file
from .load import check_document, parse_document, read_text
from .model import SECTIONS, SETTINGS, Setting
from .problems import as_error, unknown_key, wrong_value

_HEAD = """\
# Configuration of a meshnode. Every key is optional: what is commented out shows its default.
# Bounds and reasons of every key: docs/configuration.md. Values in use: meshnode config show.
"""
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(?:#.*)?")


def default_config_text() -> str:
    """The text of a first config file: every key, commented out, with what it is."""
    parts = [_HEAD]
    for section in SECTIONS:
        parts.append(f"[{section}]")
        for setting in SETTINGS.values():
            if setting.section == section:
                about = textwrap.fill(
                    setting.about, 96, initial_indent="# ", subsequent_indent="# "
                )
                default = setting.kind.to_toml(setting.default)
                parts.append(f"{about}\n# {setting.leaf} = {default}\n")
    return "\n".join(parts)


def set_value(path: Path, key: str, text: str) -> None:
    """Write one key into the config file at `path` (made if need be), as `text` says.

    Comments and order stay. Nothing is written unless the whole file is valid afterwards; then it
    is replaced in one step and flushed to the disk.

    Raises:
        ConfigError: unknown key, wrong value, or a file with other mistakes.
        StoreError: the file cannot be written.
    """
    setting = SETTINGS.get(key)
    if setting is None:
        raise as_error([unknown_key(str(path), key)])
    try:
        value = setting.kind.parse_text(text)
    except ValueError as error:
        raise as_error([wrong_value(str(path), setting, text, str(error))]) from None
    notation = setting.kind.to_toml(value)
    # A config file may be a link into a folder under version control: the link stays.
    target = Path(os.path.realpath(path))
    before = read_text(target) or default_config_text()
    after = _with_key(before, setting, notation, path)
    check_document(parse_document(after, path), path)
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
    replace_file(target, after.encode("utf-8"), mode=mode)


def _with_key(text: str, setting: Setting, notation: str, path: Path) -> str:
    document = parse_document(text, path)
    wanted = _with_item(document, setting, parse_document(f"x = {notation}", path)["x"], path)
    # First the ways that leave the file as a person would have. They look at lines, and a line may
    # be part of something else (a multi-line string), so only the expected meaning is accepted.
    for edit in (_uncommented, _inserted, _edited):
        edited = edit(text, setting, notation)
        if edited is not None and _means(edited, wanted, path):
            return edited
    raise ConfigError(
        f"{path} is written in a way that {setting.key} cannot be set in safely.",
        hint=f"Edit the file: under [{setting.section}], {setting.leaf} = {notation}",
    )


def _with_item(
    document: dict[str, Any], setting: Setting, value: object, path: Path
) -> dict[str, Any]:
    """A copy of `document` with the value set."""
    copy = dict(document)
    table = copy
    for name in setting.section.split("."):
        inner = table.get(name, {})
        if not isinstance(inner, dict):
            # The check of the whole file tells this best.
            check_document(document, path)
        table[name] = dict(inner)
        table = table[name]
    table[setting.leaf] = value
    return copy


def _means(text: str, wanted: dict[str, Any], path: Path) -> bool:
    try:
        return parse_document(text, path) == wanted
    except ConfigError:
        return False


def _uncommented(text: str, setting: Setting, notation: str) -> str | None:
    """The commented-out default, where a reader looks for the key, becomes the key."""
    lines = text.split("\n")
    commented = re.compile(rf"\s*#\s*{re.escape(setting.leaf)}\s*=.*")
    section = ""
    for index, line in enumerate(lines):
        if header := _HEADER.fullmatch(line):
            section = header[1]
        elif section == setting.section and commented.fullmatch(line):
            ending = "\r" if line.endswith("\r") else ""
            lines[index] = f"{setting.leaf} = {notation}{ending}"
            return "\n".join(lines)
    return None


def _inserted(text: str, setting: Setting, notation: str) -> str | None:
    """A new line below the last key of the section, or a new section at the end."""
    lines = text.rstrip("\n").split("\n")
    section, place = "", None
    for index, line in enumerate(lines):
        if header := _HEADER.fullmatch(line):
            section = header[1]
        if section == setting.section and line.strip() and not line.lstrip().startswith("#"):
            place = index + 1
    new = [f"{setting.leaf} = {notation}"]
    if place is None:
        new = ["", f"[{setting.section}]", *new]
        place = len(lines)
    return "\n".join([*lines[:place], *new, *lines[place:]]) + "\n"


def _edited(text: str, setting: Setting, notation: str) -> str | None:
    """The value of a key that is there already, wherever and however it is written."""
    import tomlkit  # only writing needs it, and it takes longer to load than all the rest
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        table: Any = document
        for name in setting.section.split("."):
            if name not in table:
                table[name] = tomlkit.table()
            table = table[name]
        table[setting.leaf] = tomlkit.parse(f"x = {notation}")["x"]
        return tomlkit.dumps(document)
    except TOMLKitError:
        return None  # the library is stricter than the language here and there
