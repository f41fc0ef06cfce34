"""A node that runs until it is told to stop: what `meshnode start` is."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable

import structlog
import trio

from ...config import Config
from ..allocator import use_few_arenas
from ..logging_setup import set_up_logging
from ..node import open_node
from .error_json import as_mesh_error
from .face import NodeFace
from .server import serve_api

log = structlog.get_logger(__name__)

STOP_SECS = 4.5
"""After this long a stop that hangs is ended by force; the store is safe at any moment."""

OnReady = Callable[[dict[str, object]], None]


def run_service(config: Config, on_ready: OnReady) -> None:
    """Run a node and its API until SIGINT, SIGTERM or a stop by the API; a second signal ends the
    process at once.

    Args:
        on_ready: told the node's status once it listens and has looked for the mesh.

    Raises:
        MeshError: the node cannot start.
    """
    use_few_arenas()
    set_up_logging(level=config.log.level, format=config.log.format)
    try:
        trio.run(_run, config, on_ready)
    except BaseExceptionGroup as group:
        known = as_mesh_error(group)
        if known is not None:
            raise known from group
        raise


async def _run(config: Config, on_ready: OnReady) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await _serve(config, on_ready, signals)
    log.info("stopped")


async def _serve(config: Config, on_ready: OnReady, signals: AsyncIterator[int]) -> None:
    async with trio.open_nursery() as nursery:
        starting = _Starting(nursery.cancel_scope)
        nursery.start_soon(_obey_signals, starting, signals)
        async with open_node(config) as node, serve_api(node, config.paths.socket):
            starting.node = node
            # A folder of ten thousand files makes enough objects for several full collections; what
            # the node itself is made of stays, and need not be looked at in each of them.
            gc.freeze()
            nursery.start_soon(_announce, node, on_ready)
            await node.wait_stop_requested()
            log.info("stopping")
            _force_end_later()
        nursery.cancel_scope.cancel()


class _Starting:
    """How to stop: while the node starts by cancelling, then by asking it."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self.node: NodeFace | None = None

    def stop(self) -> None:
        if self.node is None:
            _force_end_later()
            self._scope.cancel()
        else:
            self.node.request_stop()


async def _obey_signals(starting: _Starting, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        log.info("signal", signal=signal.Signals(number).name)
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)
        starting.stop()


async def _announce(node: NodeFace, on_ready: OnReady) -> None:
    await node.wait_ready()
    status = (await node.status()).to_json()
    log.info("ready", peer_id=status.get("peer_id"), addresses=status.get("addresses"))
    on_ready(status)


def _force_end_later() -> None:
    """A thread of its own, so that not even a blocked event loop can hold up the end."""
    timer = threading.Timer(STOP_SECS, _force_end)
    timer.daemon = True
    timer.start()


def _force_end() -> None:
    log.error("stop_forced", after_secs=STOP_SECS)
    os._exit(1)
