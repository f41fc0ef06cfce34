"""Reading a configuration back: one value, all values, or the whole as a TOML text."""

from __future__ import annotations

from dataclasses import dataclass

from .model import SECTIONS, SETTINGS, Config, Origin, Setting
from .problems import as_error, unknown_key


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of one configuration."""

    setting: Setting
    value: object
    origin: Origin

    @property
    def text(self) -> str:
        """The value as it would stand in the file."""
        return self.setting.kind.to_toml(self.value)


def get_entry(config: Config, key: str) -> Entry:
    """The key, its value and where that comes from.

    Raises:
        ConfigError: no such key.
    """
    setting = SETTINGS.get(key)
    if setting is None:
        raise as_error([unknown_key("config", key)])
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return Entry(setting, value, config.origins.get(key, "default"))


def get_value(config: Config, key: str) -> object:
    """The value of a dotted key: `int`, `float`, `bool`, `str` or a tuple of `str`.

    Raises:
        ConfigError: no such key.
    """
    return get_entry(config, key).value


def entries(config: Config) -> list[Entry]:
    """All keys in the order of the manual."""
    return [get_entry(config, key) for key in SETTINGS]


def render(config: Config, *, origins: bool = True) -> str:
    """The whole configuration as TOML; with `origins`, each value says where it comes from."""
    lines = [f"# {config.paths.config_file}"]
    shown = entries(config)
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        here = [entry for entry in shown if entry.setting.section == section]
        texts = [f"{entry.setting.leaf} = {entry.text}" for entry in here]
        width = max(len(text) for text in texts if len(text) <= 48)
        for entry, text in zip(here, texts, strict=True):
            lines.append(f"{text:<{width}}  # {_origin(entry)}" if origins else text)
    return "\n".join(lines) + "\n"


def _origin(entry: Entry) -> str:
    return f"env: {entry.setting.variable}" if entry.origin == "env" else entry.origin
