"""Starting a node in the background, and ending one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..errors import DeadlineError, MeshError, RefusedError
from .client import JsonObject
from .connect import http_client, lock_holder

if TYPE_CHECKING:
    from ..config import Config, Paths
    from .http_client import HttpClient

START_SECS = 60.0
ASK_SECS = 6.0
"""How long a node that was asked to stop may take; it limits itself to 5 s."""
TERM_SECS = 3.0
KILL_SECS = 4.0
REAP_SECS = 2.0
_POLL_SECS = 0.02
_LOG_LINES = 15
_MAX_LOG_BYTES = 64 * 1024
_CONSOLE_INFORMATION = re.compile(r"\[(info|debug) *\]")
_MAX_STATUS_BYTES = 1 << 20


def start_detached(config: Config, arguments: list[str]) -> JsonObject:
    """Start the node of this home in a session of its own; its status, once it is ready.

    Raises:
        MeshError: it ended before it was ready; with its last log lines and its exit code.
        DeadlineError: it was not ready in time; it has been ended.
    """
    earlier = _size(config.paths.log_file)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        try:
            child = _spawn(config, arguments, writer)
        finally:
            os.close(writer)
        told = _read_all(pipe.fileno(), time.monotonic() + START_SECS)
    if told is None:
        child.kill()
        child.wait()
        raise DeadlineError(
            f"The node was not ready after {START_SECS:g} s and was ended.\n"
            + _last_lines(config.paths.log_file, earlier),
            hint=f"The whole log is {config.paths.log_file}.",
        )
    try:
        status = json.loads(told)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        raise _died(config.paths.log_file, earlier, child.wait())
    return status


def _spawn(config: Config, arguments: list[str], ready: int) -> subprocess.Popen[bytes]:
    log_file = config.paths.log_file
    command = [sys.executable, "-m", "meshnode.cli", "start", f"--ready-fd={ready}", *arguments]
    try:
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MeshError(
            f"The log file {log_file} cannot be opened: {reason}.",
            hint="Make it a file that you may write to, or move it away.",
        ) from error
    try:
        return subprocess.Popen(
            command,
            env={**os.environ, **_home_variable(config)},
            cwd="/",  # so that no file system stays busy for a forgotten node
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[ready],
            start_new_session=True,
        )
    finally:
        os.close(log)


def _home_variable(config: Config) -> dict[str, str]:
    """The child's home as an absolute path, if this is not the platform's own place."""
    in_home = config.paths.config_file.parent == config.paths.home
    return {"MESHNODE_HOME": str(config.paths.home)} if in_home else {}


def _read_all(pipe: int, deadline: float) -> bytes | None:
    """What comes out of the pipe until its end; None when the deadline passes first."""
    told = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            break
        piece = os.read(pipe, 65536)
        if not piece or len(told) > _MAX_STATUS_BYTES:
            return bytes(told)
        told += piece
    return None


def _died(log_file: Path, earlier: int, code: int) -> MeshError:
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    message = f"The node ended {how} before it was ready.\n{_last_lines(log_file, earlier)}"
    hint = f"The whole log is {log_file}."
    return (
        RefusedError(message, hint=hint)
        if code == RefusedError.exit_code
        else MeshError(message, hint=hint)
    )


def _size(log_file: Path) -> int:
    try:
        return log_file.stat().st_size
    except OSError:
        return 0


def _last_lines(log_file: Path, earlier: int) -> str:
    """The end of what was logged after the first `earlier` bytes; when an error is among it, only
    what is more than information."""
    try:
        with open(log_file, "rb") as log:
            log.seek(max(earlier, log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "(no log)"
    if any(line.startswith("error: ") for line in lines):
        lines = [line for line in lines if not _is_information(line)]
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "(it logged nothing)"


def _is_information(line: str) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return _CONSOLE_INFORMATION.search(line) is not None
    return isinstance(found, dict) and found.get("level") in ("info", "debug")


def stop_node(paths: Paths, note: Callable[[str], None]) -> int | None:
    """End the node of this home: ask by its API, then by SIGTERM, then by SIGKILL.

    Returns its process id; None when none was running.

    Args:
        note: told when it takes longer than it should.

    Raises:
        DeadlineError: it is still there.
    """
    client = http_client(paths)
    pid = lock_holder(paths.lock_file) or _pid_by_api(client)
    if pid is None:
        return None
    with _Process(pid, paths.lock_file) as process:
        asked = _ask_to_stop(client)
        if asked and process.wait_gone(ASK_SECS):
            return pid
        problem = "has not ended yet" if asked else "does not answer"
        note(f"the node (process {pid}) {problem}: sending SIGTERM, waiting {TERM_SECS:g} s")
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a process that is stopped (Ctrl-Z) takes it up only then
        if process.wait_gone(TERM_SECS):
            return pid
        note(f"the node (process {pid}) is still there: sending SIGKILL")
        process.signal(signal.SIGKILL)
        if process.wait_gone(KILL_SECS):
            return pid
    raise DeadlineError(
        f"The node (process {pid or 'unknown'}) still holds {paths.lock_file}.",
        hint="Its disk may hang; look at the process with `ps`.",
    )


class _Process:
    """A node's process, held so that its number cannot come to mean another one."""

    def __init__(self, pid: int, lock_file: Path) -> None:
        self._pid = pid
        self._lock_file = lock_file
        self._handle: int | None = None

    def __enter__(self) -> Self:
        if self._pid and sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._handle = os.pidfd_open(self._pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def signal(self, number: signal.Signals) -> None:
        # The lock says that the process behind the number is still the node.
        if self._pid and lock_holder(self._lock_file) == self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """Whether the process has ended and given its lock back within that time."""
        deadline = time.monotonic() + seconds
        while lock_holder(self._lock_file) is not None or not self._has_ended(deadline):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECS)
        self._wait_reaped(min(deadline, time.monotonic() + REAP_SECS))
        return True

    def _wait_reaped(self, deadline: float) -> None:
        """Give its parent a moment to let go of the number, for whoever looks it up after us."""
        with contextlib.suppress(OSError):
            while self._pid and time.monotonic() < deadline:
                os.kill(self._pid, 0)
                time.sleep(_POLL_SECS)

    def _has_ended(self, deadline: float) -> bool:
        if self._handle is None:
            return True
        left = max(0.0, deadline - time.monotonic())
        return bool(select.select([self._handle], [], [], left)[0])


def _pid_by_api(client: HttpClient) -> int | None:
    try:
        client.check_listening()
        pid = client.call("status", {}).get("pid")
    except MeshError:
        return None
    return pid if isinstance(pid, int) else None


def _ask_to_stop(client: HttpClient) -> bool:
    try:
        client.call("stop", {})
    except MeshError:
        return False
    return True
