"""Where a node keeps its files.

With `--home` or `MESHNODE_HOME` everything lives under that one folder. Without, the configuration
goes where the platform keeps configuration and the rest where it keeps data.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

HOME_VARIABLE = "MESHNODE_HOME"
MAX_SOCKET_PATH_BYTES = 103
"""`sun_path` is 108 bytes on Linux and 104 on macOS and BSD, with the final NUL."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Absolute paths of one node. Only `socket` may lie outside `home` and the config folder."""

    home: Path
    config_file: Path
    data_dir: Path
    identity_file: Path
    mesh_file: Path
    socket: Path
    log_file: Path
    lock_file: Path


def find_paths(home: Path | None, env: Mapping[str, str]) -> Paths:
    """Paths for `home`, else for `MESHNODE_HOME` in `env`, else for this user on this platform.

    Creates nothing, except the private folder for the socket when `home` is too deep for one.

    Raises:
        ConfigError: no safe place for the socket, or a home that cannot be made sense of.
    """
    if home is None and env.get(HOME_VARIABLE):
        home = Path(env[HOME_VARIABLE])
    if home is not None:
        root = _absolute(home)
        return _under(root, root / "config.toml", env)
    import platformdirs  # start-up time: a node with a home of its own does not need it

    root = _absolute(platformdirs.user_data_path("meshnode", appauthor=False))
    config_root = _absolute(platformdirs.user_config_path("meshnode", appauthor=False))
    return _under(root, config_root / "config.toml", env)


def _under(root: Path, config_file: Path, env: Mapping[str, str]) -> Paths:
    return Paths(
        home=root,
        config_file=config_file,
        data_dir=root / "data",
        identity_file=root / "identity.pem",
        mesh_file=root / "mesh.json",
        socket=_socket_path(root, env),
        log_file=root / "node.log",
        lock_file=root / "node.lock",
    )


def _absolute(path: Path) -> Path:
    try:
        # Links are followed, so that one home has one name whichever way it is reached.
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The home folder {str(path)[:200]!r} cannot be used: {error}."
        ) from error


def _socket_path(home: Path, env: Mapping[str, str]) -> Path:
    direct = home / "api.sock"
    if _fits(direct):
        return direct
    import hashlib  # start-up time: few homes are that deep

    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16] + ".sock"
    choices = [folder / name for folder in _runtime_folders(env) if _fits(folder / name)]
    # A client may run with another environment than the node did (cron, ssh): where a socket
    # exists already, that is the one.
    for choice in sorted(choices, key=lambda path: not os.path.exists(path)):
        if _make_private(choice.parent):
            return choice
    tried = ", ".join(str(choice.parent) for choice in choices) or "none short enough"
    raise ConfigError(
        f"{direct} is too long for a socket (at most {MAX_SOCKET_PATH_BYTES} bytes), and no folder "
        f"for a shorter one is owned by this user and private (tried: {tried}).",
        hint="Choose a shorter home, or set XDG_RUNTIME_DIR to a private folder.",
    )


def _runtime_folders(env: Mapping[str, str]) -> Iterator[Path]:
    import tempfile  # start-up time, as above

    user = os.getuid()
    for runtime in (env.get("XDG_RUNTIME_DIR"), f"/run/user/{user}"):
        if runtime and os.path.isabs(runtime) and os.access(runtime, os.W_OK):
            yield Path(runtime) / "meshnode"
    for temporary in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        yield Path(temporary) / f"meshnode-{user}"


def _make_private(folder: Path) -> bool:
    """Make `folder` with mode 0700, or see that it is ours, private and no link.

    In a folder everybody can write to, somebody else may have taken the name first, to receive
    what is meant for the node.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return ours and not status.st_mode & 0o077


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
