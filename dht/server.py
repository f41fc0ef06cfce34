"""Serves other nodes' requests, stream by stream.

Answers are computed without waiting, from memory, so a request is never half applied. What a peer
can make this node keep or send is bounded by the decoders, the stores, budgets per peer and a limit
on streams; a peer that sends nonsense loses the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from ..errors import FormatError
from .budget import OverBudgetError
from .context import DhtContext
from .framing import FrameReader, encode_frame
from .handover_answers import HandoverAnswers
from .handover_wire import decode_handover_request, encode_handover_answer
from .host import Stream
from .kad_answers import KadAnswers
from .kad_wire import KadMessage, decode_message, encode_message
from .peer_id import PeerId
from .records_answers import RecordsAnswers
from .records_wire import Answer, Request, decode_request, encode_answer
from .settings import (
    HANDOVER_PROTOCOL,
    KAD_PROTOCOL,
    MAX_HANDOVER_FRAME,
    MAX_KAD_FRAME,
    MAX_RECORDS_FRAME,
    RECORDS_PROTOCOL,
)

_IDLE_STREAM = 600.0
_REQUEST_ARRIVES_WITHIN = 20.0


class Server:
    """The answering side of all protocols."""

    def __init__(
        self,
        context: DhtContext,
        records: RecordsAnswers,
        kad: KadAnswers,
        handover: HandoverAnswers,
        heard: Callable[[PeerId], None],
    ) -> None:
        self._host = context.host
        self._settings = context.settings
        self._counters = context.counters
        self._records = records
        self._kad = kad
        self._handover = handover
        self._heard = heard
        self._streams: Counter[PeerId] = Counter()

    def install(self) -> None:
        self._host.set_handler(KAD_PROTOCOL, self._serve_kad)
        self._host.set_handler(RECORDS_PROTOCOL, self._serve_records)
        self._host.set_handler(HANDOVER_PROTOCOL, self._serve_handover)

    def answer_kad(self, sender: PeerId, request: KadMessage) -> KadMessage | None:
        """See `KadAnswers.answer`."""
        return self._kad.answer(sender, request)

    def answer_records(self, sender: PeerId, request: Request) -> Answer:
        """See `RecordsAnswers.answer`."""
        return self._records.answer(sender, request)

    async def _serve_kad(self, stream: Stream) -> None:
        async def answer(frame: bytes) -> bytes | None:
            message = self.answer_kad(stream.peer, decode_message(frame))
            return None if message is None else encode_message(message)

        await self._serve(stream, MAX_KAD_FRAME, answer)

    async def _serve_records(self, stream: Stream) -> None:
        async def answer(frame: bytes) -> bytes:
            return encode_answer(self.answer_records(stream.peer, decode_request(frame)))

        await self._serve(stream, MAX_RECORDS_FRAME, answer)

    async def _serve_handover(self, stream: Stream) -> None:
        async def answer(frame: bytes) -> bytes:
            request = decode_handover_request(frame)
            return encode_handover_answer(self._handover.answer(stream.peer, request))

        await self._serve(stream, MAX_HANDOVER_FRAME, answer)

    async def _serve(
        self, stream: Stream, max_frame: int, answer: Callable[[bytes], Awaitable[bytes | None]]
    ) -> None:
        """Answer request after request until the peer ends the stream, idles or misbehaves."""
        peer = stream.peer
        if self._streams[peer] >= self._settings.max_streams_per_peer:
            self._counters.add("streams_refused")
            await stream.reset()
            return
        self._streams[peer] += 1
        try:
            await self._answer_all(stream, FrameReader(stream, max_frame), answer)
            await stream.close()
        except FormatError:
            self._counters.add("requests_malformed")
            await stream.reset()
        except OverBudgetError:
            await stream.reset()
        except trio.TooSlowError:
            self._counters.add("streams_idle")
            await stream.reset()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _answer_all(
        self,
        stream: Stream,
        reader: FrameReader,
        answer: Callable[[bytes], Awaitable[bytes | None]],
    ) -> None:
        while True:
            with trio.fail_after(_IDLE_STREAM):
                if not await reader.wait():
                    return
            with trio.fail_after(_REQUEST_ARRIVES_WITHIN):
                frame = await reader.read()
            self._counters.add("requests_served")
            answered = await answer(frame)
            self._heard(stream.peer)
            if answered is not None:
                await stream.write(encode_frame(answered))
