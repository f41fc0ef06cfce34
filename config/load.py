"""From file, environment and overrides to a checked `Config`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .model import (
    SECTIONS,
    SETTINGS,
    Config,
    Origin,
    PerformanceSettings,
    Setting,
)
from .paths import HOME_VARIABLE, find_paths
from .problems import (
    Problem,
    as_error,
    unknown_key,
    unknown_variable,
    wrong_section,
    wrong_value,
)
from .show import get_value
from .sizes import format_size

MAX_FILE_BYTES = 1024 * 1024
RESERVED_VARIABLES = frozenset({HOME_VARIABLE})
RESERVED_PREFIXES = ("MESHNODE_TEST_", "MESHNODE_BENCH_", "MESHNODE_TESTNET_")
"""Variables of the test tools, which are no configuration of a node."""

_GROUPS = {section.partition(".")[0] for section in SECTIONS if "." in section}
_ENVIRONMENT = "environment variable "
_OVERRIDE = "override"
_CHECK_AGAIN = "Mend it, then check with: meshnode config validate"
_END_OF_TOML_ERROR = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load_config(home: Path | None = None, *, env: Mapping[str, str] | None = None) -> Config:
    """The configuration of the node whose home is `home` (else `MESHNODE_HOME`, else this user's).

    A missing file means defaults; variables `MESHNODE_SECTION_KEY` in `env` (the process's own by
    default) win over the file.

    Raises:
        ConfigError: all mistakes of file and environment together, each with file or variable,
            key, what was found, what is allowed and the nearest known key.
    """
    environment = os.environ if env is None else env
    paths = find_paths(home, environment)
    draft = _Draft()
    draft.add_document(read_document(paths.config_file), str(paths.config_file))
    draft.add_environment(environment)
    return draft.finish(Config(paths))


def check_document(document: Mapping[str, object], path: Path) -> None:
    """Check the parsed TOML of `path` by itself, whatever the environment says.

    Raises:
        ConfigError: as for `load_config`.
    """
    draft = _Draft()
    draft.add_document(document, str(path))
    draft.check()


def apply_overrides(config: Config, overrides: Mapping[str, object]) -> Config:
    """See `Config.with_overrides`."""
    draft = _Draft(config)
    for key, value in overrides.items():
        draft.add(key, value, _OVERRIDE, "override")
    return draft.finish(config)


def read_document(path: Path) -> dict[str, Any]:
    """The parsed TOML file; empty when there is none.

    Raises:
        ConfigError: unreadable, too large, or not TOML (with line and column).
    """
    return parse_document(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a config file; empty when there is none. Raises like `read_document`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path} cannot be read: {reason}.") from error
    if len(data) > MAX_FILE_BYTES:
        limit = format_size(MAX_FILE_BYTES)
        raise ConfigError(f"{path} is larger than {limit}; that is no configuration.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        where = f"{path}, line {line}, column {column}"
        raise ConfigError(f"{where}: the file is not UTF-8 text.") from error


def parse_document(text: str, path: Path) -> dict[str, Any]:
    """Parse the text of `path`. Raises like `read_document`."""
    if not text:
        return {}
    import tomllib  # start-up time: a node without a file does not need it

    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be a configuration.") from error
    except ValueError as error:
        raise ConfigError(_syntax_error(path, text, str(error)), hint=_CHECK_AGAIN) from error


def _syntax_error(path: Path, text: str, reason: str) -> str:
    match = _END_OF_TOML_ERROR.search(reason)
    if match is None:
        return f"{path} is not valid TOML: {reason}."
    if match[1]:
        line, column = int(match[1]), int(match[2])
    else:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    return f"{path}, line {line}, column {column}: not valid TOML: {reason[: match.start()]}."


class _Draft:
    """Values gathered from several sources, later ones winning, with every mistake on the way."""

    def __init__(self, base: Config | None = None) -> None:
        self._base = base
        self._values: dict[str, object] = {}
        self._origins: dict[str, Origin] = dict(base.origins) if base else {}
        self._sources: dict[str, str] = {}
        self._problems: list[Problem] = []

    def add_document(self, document: Mapping[str, object], source: str) -> None:
        self._walk(document, "", source)

    def _walk(self, table: Mapping[str, object], prefix: str, source: str) -> None:
        for name, found in table.items():
            key = f"{prefix}{name}"
            is_section = key in SECTIONS or key in _GROUPS
            if is_section and isinstance(found, dict):
                self._walk(found, key + ".", source)
            elif is_section:
                self._problems.append(wrong_section(source, key, found))
            elif isinstance(found, dict) and key not in SETTINGS:
                self._problems.append(unknown_key(source, key, is_section=True))
            else:
                self.add(key, found, source, "file")

    def add_environment(self, env: Mapping[str, str]) -> None:
        by_variable = {setting.variable: setting for setting in SETTINGS.values()}
        for variable in sorted(name for name in env if name.startswith("MESHNODE_")):
            setting = by_variable.get(variable)
            if setting is not None:
                source = _ENVIRONMENT + variable
                self._parse(setting, setting.kind.parse_text, env[variable], source, "env")
            elif near := _meant(variable, by_variable):
                self._problems.append(unknown_variable(variable, near))

    def add(self, key: str, found: object, source: str, origin: Origin) -> None:
        setting = SETTINGS.get(key)
        if setting is None:
            self._problems.append(unknown_key(source, key))
        else:
            self._parse(setting, setting.kind.parse, found, source, origin)

    def _parse(
        self,
        setting: Setting,
        parse: Callable[[Any], object],
        found: object,
        source: str,
        origin: Origin,
    ) -> None:
        try:
            self._values[setting.key] = parse(found)
        except ValueError as error:
            self._problems.append(wrong_value(source, setting, found, str(error)))
            return
        self._origins[setting.key] = origin
        self._sources[setting.key] = source

    def check(self) -> None:
        """Raise a `ConfigError` with every mistake met so far, if there is any."""
        self._check_at_most("ingest.pack_below", "ingest.chunk_size", format_size)
        self._check_at_most("network.connections_low", "network.connections_high", str)
        if self._problems:
            by_caller = all(problem.source == _OVERRIDE for problem in self._problems)
            raise as_error(self._problems, hint="" if by_caller else _CHECK_AGAIN)

    def finish(self, base: Config) -> Config:
        """`base` with the gathered values. Raises like `check`."""
        self.check()
        return replace(
            base,
            node=replace(base.node, **self._of("node")),
            storage=replace(base.storage, **self._of("storage")),
            network=replace(base.network, **self._of("network")),
            performance=PerformanceSettings(
                chunks=replace(base.performance.chunks, **self._of("performance.chunks")),
                bandwidth=replace(base.performance.bandwidth, **self._of("performance.bandwidth")),
            ),
            ingest=replace(base.ingest, **self._of("ingest")),
            limits=replace(base.limits, **self._of("limits")),
            log=replace(base.log, **self._of("log")),
            origins=self._origins,
        )

    def _check_at_most(self, key: str, bound: str, text_of: Callable[[int], str]) -> None:
        value, most = self._number(key), self._number(bound)
        if value > most:
            source = self._sources.get(key) or self._sources.get(bound) or _OVERRIDE
            found = f"{key} is {text_of(value)}"
            text = f"{found}; allowed: at most {bound}, {text_of(most)}."
            self._problems.append(Problem(source, text))

    def _number(self, key: str) -> int:
        found = self._values.get(key)
        if found is None:
            found = get_value(self._base, key) if self._base else SETTINGS[key].default
        assert isinstance(found, int)
        return found

    def _of(self, section: str) -> dict[str, Any]:
        # Any: each value has the type of its field, because that field's own kind parsed it.
        found = self._values.items()
        return {SETTINGS[k].leaf: value for k, value in found if SETTINGS[k].section == section}


def _meant(variable: str, known: Mapping[str, Setting]) -> str | None:
    """The known variable that `variable` must be a mistake for; None if it is none of ours.

    Not every `MESHNODE_...` is: Kubernetes, for one, sets MESHNODE_PORT and MESHNODE_SERVICE_HOST
    in every container beside a service called meshnode.
    """
    if variable in RESERVED_VARIABLES or variable.startswith(RESERVED_PREFIXES):
        return None
    from difflib import get_close_matches  # start-up time, see problems.nearest

    prefixes = {setting.variable.removesuffix(setting.leaf.upper()) for setting in known.values()}
    in_section = any(variable.startswith(prefix) for prefix in prefixes)
    cutoff = 0.0 if in_section else 0.8
    choices = [*known, *(() if in_section else RESERVED_VARIABLES)]
    return next(iter(get_close_matches(variable[:200], choices, n=1, cutoff=cutoff)), None)
