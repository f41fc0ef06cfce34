"""Writes docs/configuration.md from the table of settings.

python -m meshnode.config.document docs/configuration.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from .model import SECTIONS, SETTINGS, Setting

_HEAD = """\
# Configuration

<!-- Written by `python -m meshnode.config.document docs/configuration.md` from config/model.py. -->

A node reads one file, `config.toml`. Every key is optional. `meshnode config path` tells where the
file is, `meshnode config show` what is in use and where each value comes from, `meshnode config set
KEY VALUE` changes one key and keeps comments, `meshnode config validate` checks the file.

**Where.** With `--home DIR` or `MESHNODE_HOME` everything a node has lives under that one folder.
Without, the file goes where the platform keeps configuration (`~/.config/meshnode` on Linux) and
the rest where it keeps data (`~/.local/share/meshnode`). Where the path of the control socket would
be too long for the system (104 bytes), the socket is put in a private folder under
`XDG_RUNTIME_DIR` or the temporary folder instead.

**What wins.** A command-line flag, then an environment variable, then the file, then the default.
The variable of a key is its name in capitals with underscores: `MESHNODE_STORAGE_QUOTA="50 GiB"`,
`MESHNODE_PERFORMANCE_CHUNKS_MAX_CONCURRENT_RETRIEVALS=16`. Lists are separated by commas.

**Mistakes.** An unknown key, a wrong type or a value out of bounds is an error that names the file,
the key, what was found, what is allowed and the nearest known key. All mistakes are told at once,
and the node does not start with any.

**Sizes** are bytes, or text with a unit: B; KB, MB, GB, TB (powers of 1000); KiB, MiB, GiB, TiB
(powers of 1024). A running node reads its configuration once, at start.
"""


def document() -> str:
    """The whole manual page."""
    parts = [_HEAD]
    for section, cls in SECTIONS.items():
        parts.append(f"\n## [{section}]\n\n{(cls.__doc__ or '').strip()}\n")
        parts += [_entry(item) for item in SETTINGS.values() if item.section == section]
    return "".join(parts)


def _entry(setting: Setting) -> str:
    default = setting.computed or f"`{setting.kind.to_toml(setting.default)}`"
    return (
        f"\n### `{setting.key}`\n\n{setting.about}\n\n"
        f"- Type: {setting.kind.type_name}\n"
        f"- Default: {default}\n"
        f"- Allowed: {setting.kind.allowed}\n"
        f"- Change it when: {setting.why}\n"
    )


def main(arguments: list[str]) -> int:
    """Write the page to the file named, or to standard output."""
    if len(arguments) > 1:
        print("usage: python -m meshnode.config.document [FILE]", file=sys.stderr)
        return 2
    if arguments:
        Path(arguments[0]).write_text(document(), encoding="utf-8")
    else:
        print(document(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
