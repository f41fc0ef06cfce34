"""What goes out on one served stream: a lock lets one answer at a time onto it."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from ...dht.host import Buffer
from ...errors import PeerError
from .lanes import Lane
from .messages import Answer, Proceed, Refused
from .metered import MeteredStream
from .service import Refusal
from .serving import ServerCounts, Serving
from .settings import PIECE_BYTES, ServerLimits
from .traffic import Pipe
from .wire import encode

_JOIN_BYTES = 16 * 1024


class AnswerWriter:
    """See the module.

    Args:
        on_final: called with the id before the final answer to a request is written.
    """

    def __init__(
        self,
        stream: MeteredStream,
        limits: ServerLimits,
        counts: ServerCounts,
        up: Pipe,
        on_final: Callable[[int], None],
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._counts = counts
        self._up = up
        self._on_final = on_final
        self._lock = trio.Lock()

    async def close(self) -> None:
        """Write nothing more. The peer ends its side when it has read everything; a reset would
        take back answers that are still on their way."""
        async with self._lock:
            await self._stream.close()

    async def refuse(self, serving: Serving, refusal: Refusal) -> None:
        counts = self._counts.refusals
        counts[refusal.reason] = counts.get(refusal.reason, 0) + 1
        after = refusal.retry_after
        retry_after_ms = None if after is None else min(math.ceil(after * 1000), 3_600_000)
        ident = serving.request.id
        await self.send(serving, Refused(ident, refusal.reason, retry_after_ms, refusal.detail))

    async def send(self, serving: Serving, answer: Answer, body: Buffer = b"") -> None:
        """Write one answer when its turn has come.

        Raises:
            PeerError: the stream is lost, or the peer reads slower than `least_rate`.
        """
        async with self._lock:
            # From here on nothing of this request may be cancelled but with the whole stream.
            serving.committed = True
            final = not isinstance(answer, Proceed)
            if final:
                # The peer may use the id again as soon as it has the answer.
                self._on_final(answer.id)
            most = self._limits.rate_grace_secs + len(body) / self._limits.least_rate
            with trio.move_on_after(most) as slow:
                await self._write(encode(answer), memoryview(body), serving.lane, slow)
            if slow.cancelled_caught:
                raise PeerError(f"Peer {self._stream.peer.short} reads too slowly.")
            serving.committed = final or serving.body_began
        if serving.cancelled and not serving.committed:
            serving.scope.cancel()

    async def _write(
        self, header: bytes, body: memoryview, lane: Lane, slow: trio.CancelScope
    ) -> None:
        if len(body) <= _JOIN_BYTES:
            self._up.charge(self._stream.peer, len(body))
            self._up.moved(len(body))
            await self._stream.write(header + bytes(body))
        else:
            with self._up.body(lane):
                await self._write_slices(header, body, lane, slow)
        self._counts.bytes_sent += len(header) + len(body)

    async def _write_slices(
        self, header: bytes, body: memoryview, lane: Lane, slow: trio.CancelScope
    ) -> None:
        peer, done = self._stream.peer, 0
        while done < len(body):
            # With the header, the first piece is as long as the others.
            size = self._up.take_now(lane, min(len(body) - done, PIECE_BYTES - len(header)))
            if not size:
                if header:  # the peer shall not take our own limits for its silence
                    await self._stream.write(header)
                    header = b""
                began = trio.current_time()
                size = await self._up.take(peer, lane, len(body) - done)
                slow.deadline += trio.current_time() - began  # not the peer's slowness
            piece: Buffer = body[done : done + size]
            if header:
                # A copy of one slice costs less than a frame and a packet for the header.
                piece, header = header + bytes(piece), b""
            await self._stream.write(piece)
            self._up.moved(size)
            done += size
