"""A short cut for large meshes: a request reaches the answering code without a stream and a task.

Between two `QuickHost`s a stream is a question and an answer on the network's timer. Everything a
request does is what it does over a `SimStream`: bytes are encoded, sent, delayed, held up by
faults, decoded and answered by the real code. Left out is the loop that reads requests off a
stream, with its bounds on idle time and on streams per peer: its tasks are most of the memory of a
large mesh and half of the time.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from meshnode.dht import Dht, gossip_wire, kad_wire, records_wire
from meshnode.dht.budget import OverBudgetError
from meshnode.dht.framing import decode_length, encode_frame
from meshnode.dht.host import Buffer, Stream
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import KAD_PROTOCOL, RECORDS_PROTOCOL
from meshnode.errors import FormatError, PeerError
from meshnode.node.transport.sim import SimHost
from meshnode.node.transport.sim_stream import SimConnection

Answerer = Callable[[PeerId, bytes], bytes | None]


class QuickHost(SimHost):
    """A simulated host whose DHT answers other such hosts directly."""

    answerers: dict[str, Answerer]

    def serve_quickly(self, dht: Dht) -> None:
        self.answerers = answerers_of(dht)

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        await self.connect(peer)
        connection = self.connection_to(peer)
        if connection is None:
            raise PeerError(f"The connection to peer {peer.short} was lost.")
        other = connection.other(self)
        answer = other.answerers.get(protocol) if isinstance(other, QuickHost) else None
        if answer is None or not await connection.quick_round_trip(self):
            return await super().open_stream(peer, protocol)
        return QuickStream(self, other, connection, protocol, answer)


def answerers_of(dht: Dht) -> dict[str, Answerer]:
    """What `dht` answers to a frame of each protocol."""
    server, gossip = dht._server, dht._gossip

    def kad(sender: PeerId, frame: bytes) -> bytes | None:
        answer = server.answer_kad(sender, kad_wire.decode_message(frame))
        server._heard(sender)
        return None if answer is None else kad_wire.encode_message(answer)

    def records(sender: PeerId, frame: bytes) -> bytes:
        answer = server.answer_records(sender, records_wire.decode_request(frame))
        server._heard(sender)
        return records_wire.encode_answer(answer)

    answerers: dict[str, Answerer] = {KAD_PROTOCOL: kad, RECORDS_PROTOCOL: records}
    if gossip is not None:

        def peers(sender: PeerId, frame: bytes) -> bytes:
            answer = gossip.answer(sender, gossip_wire.decode_request(frame))
            return gossip_wire.encode_answer(answer)

        answerers[gossip_wire.PEERS_PROTOCOL] = peers
    return answerers


class QuickStream:
    """The asking end; there is no other. One question at a time; implements `Stream`."""

    __slots__ = (
        "_answer",
        "_answerer",
        "_arrival",
        "_connection",
        "_failure",
        "_host",
        "_protocol",
        "_question",
        "_reader",
        "_target",
    )

    inbound = False

    def __init__(
        self,
        host: QuickHost,
        target: QuickHost,
        connection: SimConnection,
        protocol: str,
        answerer: Answerer,
    ) -> None:
        self._host = host
        self._target = target
        self._connection = connection
        self._protocol = protocol
        self._answerer = answerer
        self._question: bytes | None = None
        self._answer: bytes | None = None
        self._arrival = 0.0
        self._reader: trio.lowlevel.Task | None = None
        self._failure = ""
        connection.streams.add(self)  # type: ignore[arg-type]

    @property
    def peer(self) -> PeerId:
        return self._target.peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    async def write(self, data: Buffer) -> None:
        await self._running()
        frame = bytes(data)
        head = decode_length(frame)
        assert head is not None
        assert head[0] + head[1] == len(frame), "a request is written in one piece"
        self._host.bytes_sent += len(frame)
        self._question = frame[head[1] :]
        self._send_from(self._host, len(frame))

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        await self._running()
        try:
            while not (self._answer is not None and self._has_arrived()):
                if self._failure:
                    raise PeerError(self._failure)
                self._reader = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_reading)
        except trio.Cancelled:
            self.break_off("The stream was reset.")
            raise
        data, rest = self._answer[:max_bytes], self._answer[max_bytes:]
        self._answer = rest or None
        return data

    def wake(self) -> None:
        """Something was due to arrive, or the network has changed."""
        if self._question is not None:
            if self._has_arrived():
                self._serve()
        elif self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader)

    def _serve(self) -> None:
        question, self._question = self._question, None
        assert question is not None
        try:
            answer = self._answerer(self._host.peer_id, question)
        except (FormatError, OverBudgetError):
            self.break_off("The peer reset the stream.")
            return
        if answer is not None:
            self._answer = encode_frame(answer)
            self._target.bytes_sent += len(self._answer)
            self._send_from(self._target, len(self._answer))

    def _send_from(self, sender: SimHost, size: int) -> None:
        postman = sender.network.postman
        self._arrival = postman.rounded(self._connection.ways[sender.peer_id].transmit(size))
        postman.wake_at(self._arrival, self)

    def _has_arrived(self) -> bool:
        blocked = self._host.network.blocked(self._host, self._target)
        return not blocked and trio.current_time() >= self._arrival

    async def _running(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._failure:
            raise PeerError(self._failure)
        if not self._host.is_running:
            await self._host.running()

    def _stop_reading(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def break_off(self, why: str) -> None:
        self._failure = self._failure or why
        self._question = self._answer = None
        self._connection.streams.discard(self)  # type: ignore[arg-type]
        self.wake()

    async def close(self) -> None:
        await self.reset()

    async def reset(self) -> None:
        self.break_off("The stream was reset.")
        await trio.lowlevel.cancel_shielded_checkpoint()
