"""What goes out on one stream to a peer: requests and bodies, in the order they were queued."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from ...dht.host import Buffer
from .lanes import Lane
from .metered import MeteredStream
from .pending import Pending
from .stats import PeerStats
from .traffic import Pipe

_JOIN_BYTES = 16 * 1024


@dataclass(slots=True, eq=False)
class _Frame:
    """Something to write; `pending` is None for a CANCEL."""

    header: bytes
    body: memoryview
    pending: Pending | None


class FrameWriter:
    """See the module. One task runs it; others only leave frames.

    Args:
        up: shapes bodies, all of them in `lane`.
        on_asking: called when the first frame of a request is about to be written.
        on_held: called after our own limits or lanes held up what is queued here, with the seconds.
    """

    def __init__(
        self,
        stream: MeteredStream,
        stats: PeerStats,
        up: Pipe,
        lane: Lane,
        on_asking: Callable[[Pending], None],
        on_held: Callable[[float], None],
    ) -> None:
        self._stream = stream
        self._stats = stats
        self._up = up
        self._lane = lane
        self._on_asking = on_asking
        self._on_held = on_held
        self._frames: deque[_Frame] = deque()
        self._more = trio.Event()
        self.writing: Pending | None = None
        """Whose body is being written now."""
        self.holding = False
        """Whether our own limits or lanes hold up the body that is being written."""

    def enqueue(self, header: bytes, body: Buffer, pending: Pending | None) -> None:
        self._frames.append(_Frame(header, memoryview(body).cast("B"), pending))
        self._more.set()

    def drop(self, pending: Pending) -> None:
        """Take back what of `pending` has not begun to be written."""
        self._frames = deque(frame for frame in self._frames if frame.pending is not pending)

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            PeerError: the stream is lost.
        """
        while True:
            if not self._frames:
                self._more = trio.Event()
                await self._more.wait()
            else:
                await self._write_batch()

    async def _write_batch(self) -> None:
        """Write the headers that wait, in one go, up to and with the first body."""
        batch: list[_Frame] = []
        size = 0
        while self._frames and (not batch or size + len(self._frames[0].header) <= _JOIN_BYTES):
            frame = self._frames.popleft()
            if frame.pending is not None and not frame.pending.sending:
                self._on_asking(frame.pending)
            batch.append(frame)
            size += len(frame.header)
            if frame.body:
                break
        await self._write(b"".join(frame.header for frame in batch))
        await self._write_body(batch[-1])
        for frame in batch:
            if frame.pending is not None:
                frame.pending.sent_at = trio.current_time()

    async def _write_body(self, frame: _Frame) -> None:
        pending, body = frame.pending, frame.body
        if pending is None or not body:
            return
        pending.upload_began = True
        self._stats.upload.began()
        self.writing = pending
        with self._up.body(self._lane):
            while pending.uploaded < len(body):
                left = len(body) - pending.uploaded
                size = self._up.take_now(self._lane, left) or await self._wait(pending, left)
                await self._write(body[pending.uploaded : pending.uploaded + size])
                self._up.moved(size)
                pending.uploaded += size
        self.writing = None
        if pending.on_sent is not None:
            pending.on_sent()

    async def _wait(self, pending: Pending, left: int) -> int:
        """Wait until our own limits and lanes let some of `left` bytes go."""
        began = trio.current_time()
        self.holding = True
        try:
            size = await self._up.take(self._stream.peer, self._lane, left)
        finally:
            self.holding = False
        if (secs := trio.current_time() - began) > 0.0:
            pending.held = True
            self._on_held(secs)
        return size

    async def _write(self, data: Buffer) -> None:
        await self._stream.write(data)
        self._stats.bytes_sent += len(data)
