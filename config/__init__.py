"""Configuration: one table of typed settings, read from file, environment and overrides.

The table in `model.py` is the single source of parsing, checking, `meshnode config` and
docs/configuration.md. This room knows nothing of any other but the error hierarchy, and loads
nothing heavy: every command of the command line starts here.
"""

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
