"""TCP between nodes that behaves as badly as it is told to.

A `Front` listens in the place of one node and passes every connection on to it, as its `Line` says.
Beside what a line does all the time, three things can happen to it:

- *frozen*: nothing moves in either direction, nothing is lost, buffers fill; as with a peer that
  is stopped, or a path that broke a moment ago;
- *silent*: what is sent is taken and lost, new connections are accepted and never answered, and
  that the other side has closed is told to nobody; a half-open connection;
- *cut*: connections end with a reset.

`open_fault_proxy` runs fronts in a thread of its own, for programs without trio.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from .line import Direction, Line

_CUT_SECS = 1.0
_TRAVELLING_BYTES = 32 << 20
"""What a connection may have under way in one direction: 160 MB/s at a round trip of 400 ms."""
_BUFFER_BYTES = 256 << 10
"""Of the sockets: a slow line must not hide behind megabytes the kernel has taken already."""
_DIAL_SECS = 5.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes on their way; empty at the end of the stream."""

    data: bytes
    due: float


class _Travelling:
    """Bytes of one direction of one connection that are under way, in order."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self._bytes = 0
        self._changed = trio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def room(self) -> None:
        while self._bytes >= _TRAVELLING_BYTES:
            await self._changed.wait()

    def add(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._bytes += len(piece.data)
        self._wake()

    async def take(self) -> Piece:
        while not self._pieces:
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._bytes -= len(piece.data)
        self._wake()
        return piece


class _Connection:
    """One connection through a front; ends when both sides have, or when it is cut."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.near, self.far = near, far
        self.scope = trio.CancelScope()

    def cut(self) -> None:
        for stream in (self.near, self.far):
            with contextlib.suppress(OSError):  # closed already
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.scope.cancel()


class Front:
    """Stands in for one node; `serve` is its one task."""

    def __init__(self, target: tuple[str, int], seed: int = 0) -> None:
        """`target`: host and port of the node; it need not listen yet."""
        self.target = target
        self.line = Line()
        self.passed = 0
        """Bytes that came out, on both sides."""
        self.cuts = 0
        """Connections that were cut."""
        self.dialled = 0
        """Connections that came."""
        self._rng = random.Random(seed)
        self._out, self._back = Direction(self._rng), Direction(self._rng)
        self._connections: set[_Connection] = set()
        self._swallowed: set[trio.CancelScope] = set()
        self._silent = False
        self._moving = trio.Event()
        self._moving.set()
        self._listener: trio.SocketListener | None = None

    async def listen(self) -> int:
        """Bind to a port of this machine, and say which."""
        (self._listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = self._listener.socket.getsockname()[1]
        return port

    async def serve(self) -> None:
        """Pass connections on until cancelled."""
        if self._listener is None:
            await self.listen()
        assert self._listener is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_now_and_then)
            await trio.serve_listeners(self._pass_on, [self._listener], handler_nursery=nursery)

    # --- what happens to it -------------------------------------------------------------------

    def freeze(self) -> None:
        if self._moving.is_set():
            self._moving = trio.Event()

    def silence(self) -> None:
        self._silent = True

    def heal(self) -> None:
        """A plain line again. What lost bytes in silence cannot go on, and is cut."""
        self.line = Line()
        if self._silent:
            self._silent = False
            self.cut()
            for scope in self._swallowed:
                scope.cancel()
        self._moving.set()

    def cut(self, chance: float = 1.0) -> int:
        """Reset connections, each with this chance; says how many."""
        chosen = [c for c in self._connections if self._rng.random() < chance]
        for connection in chosen:
            connection.cut()
        self.cuts += len(chosen)
        return len(chosen)

    async def _cut_now_and_then(self) -> None:
        while True:
            await trio.sleep(_CUT_SECS)
            if self.line.cuts:
                self.cut(self.line.cuts)

    # --- passing on ---------------------------------------------------------------------------

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self.dialled += 1
        async with near:
            if self._silent:
                with trio.CancelScope() as scope:
                    self._swallowed.add(scope)
                    await _swallow(near)
                self._swallowed.discard(scope)
                return
            try:
                with trio.fail_after(_DIAL_SECS):
                    far = await trio.open_tcp_stream(*self.target)
            except (OSError, trio.TooSlowError):
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return  # nobody listens there: who dialled is told by a reset
            async with far:
                await self._join(_Connection(near, far))

    async def _join(self, connection: _Connection) -> None:
        for stream in (connection.near, connection.far):
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                stream.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._connections.add(connection)
        try:
            with connection.scope:
                async with trio.open_nursery() as nursery:
                    near, far = connection.near, connection.far
                    for source, sink, way in ((near, far, self._out), (far, near, self._back)):
                        travelling = _Travelling()
                        nursery.start_soon(self._take_in, connection, source, travelling, way)
                        nursery.start_soon(self._give_out, connection, sink, travelling)
        finally:
            self._connections.discard(connection)

    async def _take_in(
        self,
        connection: _Connection,
        source: trio.SocketStream,
        travelling: _Travelling,
        way: Direction,
    ) -> None:
        data = b"first"
        last = 0.0
        while data:
            await self._moving.wait()
            await travelling.room()
            try:
                data = await source.receive_some(self.line.piece)
            except trio.BrokenResourceError:
                await self._told(connection)
                return
            entered, due = way.enter(self.line, trio.current_time(), len(data))
            last = max(last, due)
            if not self._silent:
                travelling.add(Piece(data, last))
            await trio.sleep_until(entered)

    async def _give_out(
        self, connection: _Connection, sink: trio.SocketStream, travelling: _Travelling
    ) -> None:
        while True:
            piece = await travelling.take()
            await trio.sleep_until(piece.due)
            await self._moving.wait()
            if self._silent:
                continue
            try:
                if not piece.data:
                    await sink.send_eof()
                    return
                await sink.send_all(piece.data)
            except trio.BrokenResourceError:
                await self._told(connection)
                return
            self.passed += len(piece.data)

    async def _told(self, connection: _Connection) -> None:
        """One side has reset the connection: so does the other, unless nothing passes."""
        await self._moving.wait()
        if not self._silent:
            connection.cut()


async def _swallow(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some(65536):
            pass
    except trio.BrokenResourceError:
        return


class FaultProxy:
    """Fronts that run in another thread; every call may come from any thread."""

    def __init__(
        self, fronts: Sequence[Front], ports: Sequence[int], token: trio.lowlevel.TrioToken
    ):
        self._fronts = fronts
        self._token = token
        self.addresses = [f"/ip4/127.0.0.1/tcp/{port}" for port in ports]
        """Multiaddrs, one per target."""

    def _call(self, act: Callable[[Front], T], which: Sequence[int] | None = None) -> list[T]:
        fronts = self._fronts if which is None else [self._fronts[number] for number in which]
        return trio.from_thread.run_sync(
            lambda: [act(front) for front in fronts], trio_token=self._token
        )

    def set_line(self, line: Line, which: Sequence[int] | None = None) -> None:
        """Give these fronts (numbers from 0; default all) that line."""

        def give(front: Front) -> None:
            front.line = line

        self._call(give, which)

    def freeze(self, which: Sequence[int]) -> None:
        self._call(Front.freeze, which)

    def silence(self, which: Sequence[int]) -> None:
        self._call(Front.silence, which)

    def cut(self, which: Sequence[int] | None = None, chance: float = 1.0) -> int:
        """Reset connections, each with this chance; says how many."""
        return sum(self._call(lambda front: front.cut(chance), which))

    def heal(self) -> None:
        self._call(Front.heal)

    def passed(self) -> list[int]:
        """Bytes that came out, for each front, both directions together, since the start."""
        return self._call(lambda front: front.passed)

    def cuts(self) -> int:
        """Connections cut since the start."""
        return sum(self._call(lambda front: front.cuts))


@contextlib.contextmanager
def open_fault_proxy(targets: Sequence[tuple[str, int]], seed: int = 0) -> Iterator[FaultProxy]:
    """A front for each target (host, port), in a thread that ends with the block."""
    ready = threading.Event()
    opened: list[FaultProxy] = []
    scopes: list[trio.CancelScope] = []

    async def run() -> None:
        fronts = [Front(target, seed + number) for number, target in enumerate(targets)]
        ports = [await front.listen() for front in fronts]
        async with trio.open_nursery() as nursery:
            for front in fronts:
                nursery.start_soon(front.serve)
            scopes.append(nursery.cancel_scope)
            opened.append(FaultProxy(fronts, ports, trio.lowlevel.current_trio_token()))
            ready.set()

    def thread() -> None:
        try:
            trio.run(run)
        finally:
            ready.set()

    worker = threading.Thread(target=thread, name="fault proxy", daemon=True)
    worker.start()
    ready.wait()
    if not opened:
        raise RuntimeError("the fault proxy could not be started; its error is told above")
    try:
        yield opened[0]
    finally:
        trio.from_thread.run_sync(scopes[0].cancel, trio_token=opened[0]._token)
        worker.join()
