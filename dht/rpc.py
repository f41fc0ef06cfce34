"""Requests to one peer: kept streams, one deadline over everything, reset on any trouble.

A few streams per peer and protocol stay open between requests, because opening one costs more than
a request on it. One request is in flight per stream, as the kad wire has no request ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import trio

from ..errors import FormatError, PeerError
from .boundary import as_peer_error
from .contacts import Contacts
from .counters import Counters
from .framing import FrameReader, encode_frame
from .host import Host, Stream
from .peer_id import PeerId
from .settings import RPC_DEADLINE_MAX

_KEPT_STREAMS = 2
_IN_FLIGHT = 8
_OPENING_ROUND_TRIPS = 4
_KEPT_FOR = 60.0
_LET_GO_AT_ONCE = 8


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Question(Generic[_T]):
    """What to send, and how to read what comes back.

    `decode` raises FormatError for an answer that cannot be true. `bulk` requests get the longest
    deadline, as their time is work rather than distance, and teach nothing about the round trip.
    """

    protocol: str
    payload: bytes
    decode: Callable[[bytes], _T]
    max_answer: int
    bulk: bool = False


@dataclass(slots=True)
class _Line:
    """A stream and the unread bytes on it."""

    stream: Stream
    reader: FrameReader
    used_at: float = 0.0


class Rpc:
    """Asks peers, and tells `contacts` how that went."""

    def __init__(self, host: Host, contacts: Contacts, counters: Counters) -> None:
        self._host = host
        self._contacts = contacts
        self._counters = counters
        self._kept: dict[tuple[PeerId, str], list[_Line]] = {}
        """Those used last come last, streams and peers."""
        self._slots: dict[PeerId, trio.CapacityLimiter] = {}

    async def request(self, peer: PeerId, question: Question[_T]) -> _T:
        """Ask `peer`; returns the decoded answer.

        Raises:
            PeerError: unreachable, reset, late, an answer that does not decode, or any error that
                asking it led to; the peer has been demoted.
            MembershipError: not in our mesh; likewise.
        """
        self._counters.add("rpcs_sent")
        slots = self._slots.setdefault(peer, trio.CapacityLimiter(_IN_FLIGHT))
        try:
            async with slots:
                return await self._within_deadline(peer, question)
        except FormatError as error:
            self._counters.add("peers_misbehaved")
            self._contacts.failed(peer, weight=2)
            raise PeerError(f"{peer.short} sent nonsense: {error.message}") from error
        except trio.TooSlowError:
            self._failed(peer, "rpcs_late")
            raise PeerError(f"{peer.short} did not answer a DHT request in time.") from None
        except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the DHT
            self._failed(peer, "rpcs_failed")
            failure = as_peer_error(error, peer, self._counters)
            raise failure from failure.__cause__
        finally:
            stats = slots.statistics()
            if not stats.borrowed_tokens and not stats.tasks_waiting:
                self._slots.pop(peer, None)

    def is_asking(self, peer: PeerId) -> bool:
        """Whether a request to `peer` is under way."""
        return peer in self._slots

    async def dropped(self, peer: PeerId) -> None:
        """The connection to `peer` is gone, and its streams with it."""
        for key in [key for key in self._kept if key[0] == peer]:
            for line in self._kept.pop(key):
                await line.stream.reset()

    async def close(self) -> None:
        for peer, _ in list(self._kept):
            await self.dropped(peer)

    def _failed(self, peer: PeerId, count: str) -> None:
        self._counters.add(count)
        self._contacts.failed(peer)

    async def _within_deadline(self, peer: PeerId, question: Question[_T]) -> _T:
        line = self._take(peer, question.protocol)
        connected = peer in self._host.connected_peers()
        deadline = self._contacts.health.deadline(peer)
        if line is None:
            deadline = min(deadline * _OPENING_ROUND_TRIPS, RPC_DEADLINE_MAX)
        if question.bulk or not connected:
            deadline = RPC_DEADLINE_MAX
        with trio.fail_after(deadline):
            if line is not None:
                try:
                    return await self._exchange(line, peer, question)
                except PeerError:
                    # A kept stream may have died while idle; a fresh one tells.
                    self._counters.add("streams_reopened")
            stream = await self._host.open_stream(peer, question.protocol)
            line = _Line(stream, FrameReader(stream, question.max_answer))
            return await self._exchange(line, peer, question)

    async def _exchange(self, line: _Line, peer: PeerId, question: Question[_T]) -> _T:
        began = trio.current_time()
        try:
            await line.stream.write(encode_frame(question.payload))
            answer = question.decode(await line.reader.read())
        except BaseException:
            with trio.CancelScope(shield=True):
                await line.stream.reset()
            raise
        self._contacts.answered(peer, None if question.bulk else trio.current_time() - began)
        await self._give_back(line, peer, question.protocol)
        return answer

    def _take(self, peer: PeerId, protocol: str) -> _Line | None:
        kept = self._kept.get((peer, protocol))
        if not kept:
            return None
        line = kept.pop()
        if not kept:
            del self._kept[peer, protocol]
        return line

    async def _give_back(self, line: _Line, peer: PeerId, protocol: str) -> None:
        key = peer, protocol
        kept = self._kept.pop(key, [])
        # Bytes beyond the answer would be taken for the next one.
        keep = not line.reader.dirty and len(kept) < _KEPT_STREAMS
        if keep:
            line.used_at = trio.current_time()
            kept.append(line)
        if kept:
            self._kept[key] = kept
        if not keep:
            await line.stream.reset()
        await self._let_go_of_old()

    async def _let_go_of_old(self) -> None:
        """Close streams nobody has used for long, so that connections nobody uses can end."""
        oldest = trio.current_time() - _KEPT_FOR
        for key in tuple(islice(self._kept, _LET_GO_AT_ONCE)):
            lines = self._kept.get(key, [])
            if not lines or lines[-1].used_at > oldest:
                return
            del self._kept[key]
            for line in lines:
                await line.stream.close()
