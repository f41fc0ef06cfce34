"""Configuration: one table of typed settings, read from file, environment and overrides.

The table in `model.py` is the single source of parsing, checking, `meshnode config` and
docs/configuration.md. This room knows nothing of any other but the error hierarchy. Names are
imported on first use: every command of the command line needs `find_paths`, few need the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .edit import default_config_text, set_value
    from .load import check_document, load_config, read_document
    from .model import (
        SETTINGS,
        BandwidthSettings,
        ChunkSettings,
        Config,
        IngestSettings,
        LimitSettings,
        LogSettings,
        NetworkSettings,
        NodeSettings,
        Origin,
        PerformanceSettings,
        Setting,
        StorageSettings,
    )
    from .paths import Paths, find_paths
    from .schedule import limits_at, parse_entry
    from .show import Entry, entries, get_entry, get_value, render
    from .sizes import format_size, parse_size

__all__ = [
    "SETTINGS",
    "BandwidthSettings",
    "ChunkSettings",
    "Config",
    "Entry",
    "IngestSettings",
    "LimitSettings",
    "LogSettings",
    "NetworkSettings",
    "NodeSettings",
    "Origin",
    "Paths",
    "PerformanceSettings",
    "Setting",
    "StorageSettings",
    "check_document",
    "default_config_text",
    "entries",
    "find_paths",
    "format_size",
    "get_entry",
    "get_value",
    "limits_at",
    "load_config",
    "parse_entry",
    "parse_size",
    "read_document",
    "render",
    "set_value",
]

_NAMES_OF = {
    ".edit": ("default_config_text", "set_value"),
    ".load": ("check_document", "load_config", "read_document"),
    ".model": (
        "SETTINGS",
        "BandwidthSettings",
        "ChunkSettings",
        "Config",
        "IngestSettings",
        "LimitSettings",
        "LogSettings",
        "NetworkSettings",
        "NodeSettings",
        "Origin",
        "PerformanceSettings",
        "Setting",
        "StorageSettings",
    ),
    ".paths": ("Paths", "find_paths"),
    ".schedule": ("limits_at", "parse_entry"),
    ".show": ("Entry", "entries", "get_entry", "get_value", "render"),
    ".sizes": ("format_size", "parse_size"),
}
_HOME_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home, __name__), name)
