"""Which node a command talks to: the one running here, or one made for the command."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ApiUnavailableError, DeadlineError, MembershipError, StoreLockedError
from .client import Client, NobodyThereError
from .invocation import Invocation

if TYPE_CHECKING:
    from ..config import Config, Paths
    from .http_client import HttpClient

_SETTLE_SECS = 5.0
_POLL_SECS = 0.05
_MAX_PID_BYTES = 32


def connect(invocation: Invocation, *, needs_network: bool = True) -> Client:
    """The node running here, or else one in this process.

    Args:
        needs_network: whether the one in this process will be more than its database.

    Raises:
        MembershipError: this home belongs to no mesh.
        StoreLockedError: another process has this home and does not answer.
    """
    paths = invocation.paths()
    config = None if _was_read_by_node(paths) else invocation.config()
    client = _running(paths)
    if client is not None:
        return client
    config = config or invocation.config()
    check_initialised(config)
    if needs_network:
        invocation.note(
            "note: no node is running here; starting one for this command "
            "(`meshnode start --detach` keeps one running)"
        )
    from .embedded import EmbeddedClient  # the network stack, only where there is no way around it

    return EmbeddedClient(config, verbose=invocation.verbose)


def connect_running(invocation: Invocation) -> HttpClient:
    """The node running here.

    Raises:
        NobodyThereError: none is.
    """
    # Only the paths: a mistake in the file must not hide the node that runs.
    client = http_client(invocation.paths())
    client.check_listening()
    return client


def http_client(paths: Paths) -> HttpClient:
    """A client of the node of this home, whether it runs or not."""
    from .http_client import HttpClient  # start-up time

    return HttpClient(paths.socket, lambda: lock_holder(paths.lock_file))


def is_running(invocation: Invocation) -> bool:
    """Whether a node runs here, one that does not answer included."""
    try:
        connect_running(invocation)
    except NobodyThereError:
        return False
    except (ApiUnavailableError, DeadlineError):
        return True
    return True


def check_initialised(config: Config) -> None:
    """Raise a `MembershipError` unless this home belongs to a mesh."""
    if not config.paths.mesh_file.exists():
        raise MembershipError(
            f"This node belongs to no mesh yet ({config.paths.home} has no mesh.json).",
            hint="Run `meshnode init` to make a mesh, or `meshnode join TOKEN` to enter one.",
        )


def lock_holder(lock_file: Path) -> int | None:
    """The process that holds the node's lock; None when nobody does."""
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        owner = os.pread(descriptor, _MAX_PID_BYTES, 0).strip()
        # Only then is the lock itself tried: to try a free one is to hold it for a moment, and a
        # node that starts in that moment would find it taken.
        if not (owner.isdigit() and _is_alive(int(owner))):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(owner)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _was_read_by_node(paths: Paths) -> bool:
    """Whether a node that started here has found the configuration right, as it is now.

    To read it again would take longer than most commands. The socket is younger than that reading:
    only a file that has changed since, or settings in the environment, can hold a new mistake.
    """
    if any(name.startswith("MESHNODE_") and name != "MESHNODE_HOME" for name in os.environ):
        return False
    try:
        made = os.stat(paths.socket).st_ctime_ns
        return os.stat(paths.config_file).st_ctime_ns < made
    except OSError:
        return False


def _running(paths: Paths) -> HttpClient | None:
    """A client of the running node; None when there is none.

    A process that holds the lock and does not listen is just starting, just stopping, or doing a
    single command: it gets a few seconds.
    """
    client = http_client(paths)
    deadline = time.monotonic() + _SETTLE_SECS
    while True:
        try:
            client.check_listening()
            return client
        except NobodyThereError:
            holder = lock_holder(paths.lock_file)
        if holder is None:
            return None
        if time.monotonic() > deadline:
            raise StoreLockedError(
                f"{paths.home} is in use by process {holder}, and it does not answer on "
                f"{paths.socket}.",
                hint="If it is a single meshnode command, wait for it; if it is a node that "
                "hangs, end it with `meshnode stop`.",
            )
        time.sleep(_POLL_SECS)
