"""The answering side of both protocols.

Answers are computed without waiting, from memory, so a request is never half applied. What a peer
can make this node keep or send is bounded by the decoders, the record stores and a limit on
streams; a peer that sends nonsense loses the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from ..errors import FormatError, IntegrityError
from .budget import KeyBudget
from .context import DhtContext
from .framing import FrameReader, encode_frame
from .host import Stream
from .kad_wire import KadMessage, Kind, PeerAddresses, decode_message, encode_message
from .keyspace import (
    PeerIndex,
    digest_of_chunk_key,
    digest_of_manifest_key,
    peer_position,
    position,
)
from .manifests import ManifestStore, check_manifest
from .peer_id import PeerId
from .records import ChunkRecords
from .records_wire import (
    BUSY,
    MAX_HOLDER_PEERS,
    MAX_HOLDER_ROWS,
    MAX_NEIGHBOURS,
    Announce,
    Answer,
    Find,
    Found,
    Holder,
    HolderPeer,
    Near,
    Neighbours,
    Refused,
    Request,
    Verdict,
    Verdicts,
    Withdraw,
    Withdrawn,
    decode_request,
    encode_answer,
)
from .settings import KAD_PROTOCOL, MAX_KAD_FRAME, MAX_RECORDS_FRAME, RECORDS_PROTOCOL

_IDLE_STREAM = 600.0
_REQUEST_ARRIVES_WITHIN = 20.0
_ADDRESSES_PER_HOLDER = 4
_KEYS_PER_QUESTION = 16
"""A question about one key costs what looking at the whole routing table does."""
_VALUE_BYTES_PER_KEY = 1024


class _OverBudgetError(Exception):
    """The peer asks more than its share."""


class Server:
    """Serves other nodes from our routing table and records."""

    def __init__(
        self,
        context: DhtContext,
        chunks: ChunkRecords,
        manifests: ManifestStore,
        heard: Callable[[PeerId], None],
    ) -> None:
        settings = context.settings
        self._host = context.host
        self._contacts = context.contacts
        self._chunks = chunks
        self._manifests = manifests
        self._settings = settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._heard = heard
        self._streams: Counter[PeerId] = Counter()
        self._written = KeyBudget(settings.written_per_second, settings.written_burst)
        self._asked = KeyBudget(settings.asked_per_second, settings.asked_burst)

    def install(self) -> None:
        self._host.set_handler(KAD_PROTOCOL, self._serve_kad)
        self._host.set_handler(RECORDS_PROTOCOL, self._serve_records)

    async def _serve_kad(self, stream: Stream) -> None:
        async def answer(frame: bytes) -> bytes | None:
            message = self.answer_kad(stream.peer, decode_message(frame))
            return None if message is None else encode_message(message)

        await self._serve(stream, MAX_KAD_FRAME, answer)

    async def _serve_records(self, stream: Stream) -> None:
        async def answer(frame: bytes) -> bytes:
            return encode_answer(self.answer_records(stream.peer, decode_request(frame)))

        await self._serve(stream, MAX_RECORDS_FRAME, answer)

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
        except _OverBudgetError:
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

    # --- /ipfs/kad/1.0.0 ----------------------------------------------------------------------

    def answer_kad(self, sender: PeerId, request: KadMessage) -> KadMessage | None:
        """The answer to `request`, or None where the protocol gives none.

        Raises:
            FormatError: a request that breaks the rules of its kind.
        """
        if request.kind in (Kind.PUT_VALUE, Kind.ADD_PROVIDER):
            keys = 1 + len(request.value or b"") // _VALUE_BYTES_PER_KEY
            wait = self._wait(self._written, sender, keys)
        else:
            wait = self._wait(self._asked, sender, _KEYS_PER_QUESTION)
        if wait and request.kind is Kind.PUT_VALUE:
            return KadMessage(Kind.PUT_VALUE, request.key)
        if wait:
            # The standard wire has no word for it, and an empty answer would be taken for one.
            raise _OverBudgetError
        match request.kind:
            case Kind.PING:
                return KadMessage(Kind.PING)
            case Kind.FIND_NODE:
                return KadMessage(Kind.FIND_NODE, request.key, closer=self._closer(sender, request))
            case Kind.GET_VALUE:
                return self._get_value(sender, request)
            case Kind.PUT_VALUE:
                return self._put_value(sender, request)
            case Kind.GET_PROVIDERS:
                return self._get_providers(sender, request)
            case Kind.ADD_PROVIDER:
                self._add_provider(sender, request)
                return None

    def _closer(self, sender: PeerId, request: KadMessage) -> tuple[PeerAddresses, ...]:
        near = self._contacts.table.closest(position(request.key), self._settings.k + 1)
        # A peer asked for by its id is named even when nothing else is known to be near.
        return self._contacts.describe(peer for peer in near if peer != sender)[: self._settings.k]

    def _get_value(self, sender: PeerId, request: KadMessage) -> KadMessage:
        digest = digest_of_manifest_key(request.key)
        value = self._manifests.get(digest, self._wall_clock())
        closer = self._closer(sender, request)
        return KadMessage(Kind.GET_VALUE, request.key, value, closer=closer)

    def _put_value(self, sender: PeerId, request: KadMessage) -> KadMessage:
        digest = digest_of_manifest_key(request.key)
        if request.value is None:
            raise FormatError("A request to keep a value, without a value.")
        try:
            check_manifest(digest, request.value)
        except IntegrityError:
            self._counters.add("manifests_forged")
            raise
        expires = self._wall_clock() + self._settings.record_ttl
        verdict = self._manifests.put(sender, digest, request.value, expires)
        kept = request.value if verdict is Verdict.STORED else None
        return KadMessage(Kind.PUT_VALUE, request.key, kept)

    def _get_providers(self, sender: PeerId, request: KadMessage) -> KadMessage:
        digest = digest_of_chunk_key(request.key)
        records = self._chunks.holders(digest, self._wall_clock())[: self._settings.k]
        providers = self._contacts.describe(record.peer for record in records)
        closer = self._closer(sender, request)
        return KadMessage(Kind.GET_PROVIDERS, request.key, closer=closer, providers=providers)

    def _add_provider(self, sender: PeerId, request: KadMessage) -> None:
        digest = digest_of_chunk_key(request.key)
        for entry in request.providers:
            if entry.peer != sender:
                # Anybody could be made to look like a holder: only the peer itself may say so.
                self._counters.add("providers_forged")
                continue
            self._contacts.learn([entry])
            expires = self._wall_clock() + self._settings.record_ttl
            self._chunks.put(sender, None, digest, 0, expires)

    # --- /meshnode/records/1 ------------------------------------------------------------------

    def answer_records(self, sender: PeerId, request: Request) -> Answer:
        match request:
            case Announce(digests=digests) | Withdraw(digests):
                wait = self._wait(self._written, sender, max(1, len(digests)))
            case Find(digests, _):
                wait = self._wait(self._asked, sender, max(_KEYS_PER_QUESTION, len(digests)))
            case Near(targets, _):
                wait = self._wait(self._asked, sender, _KEYS_PER_QUESTION * (1 + len(targets)))
        if wait:
            return Refused(BUSY, wait)
        match request:
            case Announce():
                return self._keep(sender, request)
            case Find(digests, limit):
                return self._find(digests, limit)
            case Withdraw(digests):
                return Withdrawn(self._chunks.withdraw(sender, digests))
            case Near(targets, addresses):
                self._contacts.learn([PeerAddresses(sender, addresses)])
                return self._near(sender, targets)

    def _wait(self, budget: KeyBudget, sender: PeerId, keys: int) -> float:
        """0, or the seconds until `sender` may ask this."""
        wait = budget.take(sender, keys, trio.current_time())
        if wait:
            self._counters.add("requests_over_budget")
        return wait

    def _keep(self, sender: PeerId, request: Announce) -> Verdicts | Refused:
        if sender == self._host.peer_id:
            return Refused("a node does not announce to itself")
        expires = self._wall_clock() + min(request.ttl, self._settings.record_ttl)
        chunks = zip(request.digests, request.sizes, strict=True)
        zone = request.zone
        put = self._chunks.put
        verdicts = tuple(put(sender, zone, digest, size, expires) for digest, size in chunks)
        self._counters.add("records_received", len(verdicts))
        return Verdicts(verdicts)

    def _find(self, digests: tuple[bytes, ...], limit: int) -> Found:
        now = self._wall_clock()
        limit = min(limit, MAX_HOLDER_ROWS // max(1, len(digests)))
        table: dict[PeerId, int] = {}
        peers: list[HolderPeer] = []
        rows: list[tuple[Holder, ...]] = []
        for digest in digests:
            row: list[Holder] = []
            for record in self._chunks.holders(digest, now)[:limit]:
                if record.peer not in table:
                    if len(peers) == MAX_HOLDER_PEERS:
                        continue
                    table[record.peer] = len(peers)
                    (known,) = self._contacts.describe([record.peer])
                    addresses = known.addresses[:_ADDRESSES_PER_HOLDER]
                    peers.append(HolderPeer(record.peer, record.zone, addresses))
                index = table[record.peer]
                row.append(Holder(index, record.size, max(1, int(record.expires - now))))
            rows.append(tuple(row))
        return Found(tuple(peers), tuple(rows))

    def _near(self, sender: PeerId, targets: tuple[int, ...]) -> Neighbours:
        own = self._host.peer_id
        table = self._contacts.table
        index = PeerIndex([own, *table])
        bits = table.complete_bits()
        around = index.under(peer_position(own), bits)
        while len(around) > MAX_NEIGHBOURS // 2:
            bits += 1
            around = index.under(peer_position(own), bits)
        wanted = dict.fromkeys(around)
        room = (MAX_NEIGHBOURS - len(around)) // max(1, len(targets))
        for target in targets:
            wanted.update(dict.fromkeys(index.closest(target, min(room, self._settings.k))))
        wanted.pop(sender, None)
        return Neighbours(bits, self._contacts.describe(list(wanted)[:MAX_NEIGHBOURS]))
