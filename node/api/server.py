"""The API's Unix socket and the connections on it.

Hypercorn speaks HTTP, one `TCPServer` object per connection. The accept loop is ours, because
hypercorn's own gives no hold on its connections, and it writes to them in shielded scopes: one
client that stops reading would keep its server from ever stopping. Here every connection is known
and can be cut.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import cast

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app

from ...errors import MeshError, RefusedError
from .calls import Calls
from .face import NodeFace
from .routes import build_app

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 64
_BACKLOG = 64
_GRACE_SECS = 1.0
"""How long calls that are being answered get to say that they were cancelled."""
_KEEP_ALIVE_SECS = 5
_ACCEPT_PAUSE_SECS = 0.1


@asynccontextmanager
async def serve_api(node: NodeFace, socket_path: Path) -> AsyncIterator[None]:
    """Answer API calls on `socket_path` (mode 0600) while the block runs.

    The caller holds the node's lock, so that a socket nobody answers on is known to be stale and
    is replaced. On the way out open calls are cancelled and told so; after `_GRACE_SECS` what is
    left of the connections is cut.

    Raises:
        RefusedError: another process answers on the socket, the path is something else, or others
            can write to its folder.
        MeshError: the socket cannot be made.
    """
    with _listening(socket_path) as listener:
        calls = Calls()
        async with trio.open_nursery() as nursery:
            connections = _Connections(node, calls)
            nursery.start_soon(connections.accept, listener)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await connections.close()
                nursery.cancel_scope.cancel()


class _Connections:
    """All open connections of one API."""

    def __init__(self, node: NodeFace, calls: Calls) -> None:
        self._calls = calls
        self._config = _hypercorn_config()
        # Two libraries, two vocabularies for the same ASGI types.
        app = cast(Framework, build_app(node, calls))
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(None)
        self._open: dict[trio.SocketStream, trio.CancelScope] = {}
        self._slots = trio.Semaphore(MAX_CONNECTIONS)
        self._emptied = trio.Event()
        self._accepting = trio.CancelScope()

    async def accept(self, listening: socket.socket) -> None:
        """Serve every connection in a task of its own, at most `MAX_CONNECTIONS` at once."""
        listener = trio.socket.from_stdlib_socket(listening)
        async with trio.open_nursery() as nursery:
            with self._accepting:
                while True:
                    await self._slots.acquire()
                    try:
                        accepted, _ = await listener.accept()
                    except OSError as error:
                        self._slots.release()
                        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                            log.warning("api_accept_failed", error=str(error))
                        await trio.sleep(_ACCEPT_PAUSE_SECS)
                        continue
                    except trio.Cancelled:
                        self._slots.release()
                        raise
                    stream = trio.SocketStream(accepted)
                    self._open[stream] = trio.CancelScope()
                    nursery.start_soon(self._serve, stream, self._open[stream])

    async def _serve(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await _Connection(
                    self._app,
                    self._config,
                    self._context,
                    ConnectionState({}),
                    stream,  # type: ignore[arg-type]  # hypercorn names only the TLS stream
                )
        except Exception:
            # Task boundary: one connection must not end the API.
            log.exception("api_connection_failed")
        finally:
            stream.socket.close()
            del self._open[stream]
            self._slots.release()
            if not self._open:
                self._emptied.set()

    async def close(self) -> None:
        """Stop accepting, cancel the calls, let their answers out, then cut what is left."""
        self._accepting.cancel()
        self._calls.close()
        await self._context.terminated.set()
        with trio.move_on_after(_GRACE_SECS):
            while self._open:
                self._emptied = trio.Event()
                await self._emptied.wait()
        for stream, scope in list(self._open.items()):
            scope.cancel()
            # A write in a shielded scope ends only with its socket.
            with suppress(OSError):
                stream.socket.shutdown(socket.SHUT_RDWR)


class _Connection(TCPServer):
    """Ends with its client: hypercorn's own lingers until the keep-alive time has passed."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def _hypercorn_config() -> HypercornConfig:
    config = HypercornConfig()
    config.errorlog = None
    config.accesslog = None
    config.include_server_header = False
    config.include_date_header = False
    config.keep_alive_timeout = _KEEP_ALIVE_SECS
    return config


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    listener = _bind(path)
    identity = _identity(path)
    try:
        yield listener
    finally:
        listener.close()
        # Only our own file: by now another node may have put its socket there.
        if _identity(path) == identity:
            path.unlink(missing_ok=True)


def _bind(path: Path) -> socket.socket:
    _check_folder(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(os.fsencode(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            listener.bind(os.fsencode(path))
        # Nobody can connect before `listen`: there is no moment with other permissions.
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise MeshError(f"The API socket {path} cannot be made: {reason}.") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _check_folder(path: Path) -> None:
    try:
        status = path.parent.stat()
    except OSError as error:
        reason = error.strerror or str(error)
        raise MeshError(f"The API socket {path} cannot be made: {reason}.") from error
    if status.st_uid not in (os.getuid(), 0) or (
        status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    ):
        raise RefusedError(
            f"Other users can write to {path.parent}, so they could pose as this node there.",
            hint=f"Make it private: chmod go-w '{path.parent}'",
        )


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise RefusedError(
            f"{path} is in the way: it is not a socket.", hint="Move it to another place."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full: somebody is there
    raise RefusedError(
        f"Another process answers on {path}.", hint="Is a node running here? See `meshnode status`."
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
