"""Serves `/meshnode/peers/1`: streams bounded in number, idle time and size of a frame."""

from __future__ import annotations

from collections import Counter

import trio

from ..errors import FormatError
from .context import DhtContext
from .framing import FrameReader, encode_frame
from .gossip import Gossip
from .gossip_wire import MAX_PEERS_FRAME, PEERS_PROTOCOL, decode_request, encode_answer
from .host import Stream
from .peer_id import PeerId

_STREAMS_PER_PEER = 4
_IDLE_STREAM = 600.0
_REQUEST_ARRIVES_WITHIN = 20.0


class GossipServer:
    """The answering side of gossip; decisions are made by `Gossip.answer`."""

    def __init__(self, context: DhtContext, gossip: Gossip) -> None:
        self._counters = context.counters
        self._host = context.host
        self._gossip = gossip
        self._streams: Counter[PeerId] = Counter()

    def install(self) -> None:
        self._host.set_handler(PEERS_PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        peer = stream.peer
        if self._streams[peer] >= _STREAMS_PER_PEER:
            self._counters.add("streams_refused")
            await stream.reset()
            return
        self._streams[peer] += 1
        try:
            await self._answer_all(stream, FrameReader(stream, MAX_PEERS_FRAME))
            await stream.close()
        except FormatError:
            self._counters.add("requests_malformed")
            await stream.reset()
        except trio.TooSlowError:
            self._counters.add("streams_idle")
            await stream.reset()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _answer_all(self, stream: Stream, reader: FrameReader) -> None:
        while True:
            with trio.fail_after(_IDLE_STREAM):
                if not await reader.wait():
                    return
            with trio.fail_after(_REQUEST_ARRIVES_WITHIN):
                frame = await reader.read()
            self._counters.add("requests_served")
            self._counters.add("gossip_bytes_received", len(frame))
            answer = encode_answer(self._gossip.answer(stream.peer, decode_request(frame)))
            self._counters.add("gossip_bytes_sent", len(answer))
            await stream.write(encode_frame(answer))
