"""A node in this process for one command, asked through the same operations as one behind HTTP.

Importing this loads the whole network stack: only `connect` does, and only when it must.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import trio

from ..config import Config
from ..node.allocator import use_few_arenas
from ..node.api import operations
from ..node.api.error_json import as_mesh_error
from ..node.api.face import NodeFace
from ..node.logging_setup import set_up_logging
from ..node.node import open_node
from ..node.past_transfers import open_past_transfers
from .client import ByteSource, JsonObject, OnEvent

A = TypeVar("A")
T = TypeVar("T")

_READY_SECS = 10.0
_PIECE_BYTES = 1 << 18
_LEVELS = ("error", "info", "debug")

Operation = Callable[[NodeFace, object, OnEvent], Awaitable[JsonObject]]

_OPERATIONS: dict[str, Operation] = {
    "put": operations.put,
    "get": operations.get,
    "ls": operations.ls,
    "stat": operations.stat,
    "rm": operations.rm,
    "catalogue": operations.catalogue,
}

STORE_ONLY = "why"
"""The verb for which the network is left alone: what is asked for stands in the database."""


class EmbeddedClient:
    """Opens a node for every call and closes it behind it."""

    def __init__(self, config: Config, *, verbose: int = 0) -> None:
        self._config = config
        self._level = _LEVELS[min(verbose, len(_LEVELS) - 1)]

    def call(self, verb: str, request: JsonObject, on_event: OnEvent | None = None) -> JsonObject:
        if verb == STORE_ONLY:
            return self._told_by_store(request)
        operation = _OPERATIONS[verb]
        return self._run(lambda node: operation(node, request, on_event or _ignore))

    def _told_by_store(self, request: JsonObject) -> JsonObject:
        set_up_logging(level=self._level, format=self._config.log.format)

        async def ask() -> JsonObject:
            async with open_past_transfers(self._config) as past:
                return await operations.why(past, request, _ignore)

        try:
            return trio.run(ask)
        except BaseExceptionGroup as group:
            raise _single(group) from group

    def put_stream(self, request: JsonObject, source: ByteSource, on_event: OnEvent) -> JsonObject:
        async def put(node: NodeFace) -> JsonObject:
            async with aclosing(_pieces(source)) as pieces:
                return await operations.put_stream(node, request, pieces, on_event)

        return self._run(put)

    def peer_names(self) -> dict[str, str]:
        return {}  # the node that knew them is closed

    def cat(self, request: JsonObject, write: Callable[[bytes], object]) -> int:
        async def copy(node: NodeFace) -> int:
            done = 0
            async with operations.cat(node, request) as pieces:
                async for piece in pieces:
                    # A full pipe blocks for as long as its reader likes.
                    await _in_thread(write, piece)
                    done += len(piece)
            return done

        return self._run(copy)

    def _run(self, work: Callable[[NodeFace], Awaitable[T]]) -> T:
        use_few_arenas()
        set_up_logging(level=self._level, format=self._config.log.format)
        try:
            found: list[T] = trio.run(self._main, work)
        except BaseExceptionGroup as group:
            raise _single(group) from group
        if not found:
            raise KeyboardInterrupt
        return found[0]

    async def _main(self, work: Callable[[NodeFace], Awaitable[T]]) -> list[T]:
        """The result; empty when a signal came first, and then everything is cleaned up."""
        found: list[T] = []
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, nursery.cancel_scope, signals)
                async with open_node(self._config, serve_peers=False) as node:
                    with trio.move_on_after(_READY_SECS):
                        await node.wait_ready()
                    found.append(await work(node))
                nursery.cancel_scope.cancel()
        return found


async def _cancel_on_signal(scope: trio.CancelScope, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        # Whoever asks twice does not want to wait.
        signal.signal(number, signal.SIG_DFL)
        scope.cancel()


async def _pieces(source: ByteSource) -> AsyncGenerator[bytes, None]:
    while piece := await _in_thread(source.read, _PIECE_BYTES):
        yield piece


async def _in_thread(function: Callable[[A], T], argument: A) -> T:
    """Call what may block for as long as the other end of a pipe likes; cancelling abandons it."""
    found: T = await trio.to_thread.run_sync(
        function,
        argument,
        abandon_on_cancel=True,
    )
    return found


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for a nursery's group: the error it is about, if it is about one."""
    known = as_mesh_error(group)
    if known is not None:
        return known
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _ignore(event: JsonObject) -> None:
    """The command does not show progress."""
