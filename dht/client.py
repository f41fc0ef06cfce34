"""What can be asked of another node, one coroutine per question.

All raise PeerError or MembershipError when the peer fails; an answer that is malformed counts as a
failure of the peer and is a PeerError as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import FormatError, PeerRefusedError
from .contacts import Contacts
from .kad_wire import KadMessage, Kind, PeerAddresses, decode_message, encode_message
from .keyspace import manifest_key
from .manifests import check_manifest
from .peer_id import PeerId
from .records_wire import (
    Announce,
    Find,
    Found,
    Near,
    Neighbours,
    Refused,
    Request,
    Verdict,
    Verdicts,
    Withdraw,
    Withdrawn,
    decode_answer,
    encode_request,
)
from .rpc import Question, Rpc
from .settings import KAD_PROTOCOL, MAX_KAD_FRAME, MAX_RECORDS_FRAME, RECORDS_PROTOCOL

_BULK_KEYS = 64
_A = TypeVar("_A", Verdicts, Found, Withdrawn, Neighbours)


class Client:
    """The asking side of both protocols."""

    def __init__(self, rpc: Rpc, contacts: Contacts) -> None:
        self._rpc = rpc
        self._contacts = contacts

    async def ping(self, peer: PeerId) -> None:
        await self._kad(peer, KadMessage(Kind.PING))

    async def find_node(self, peer: PeerId, key: bytes) -> tuple[PeerAddresses, ...]:
        """The peers nearest to the position of `key` that `peer` knows."""
        return (await self._kad(peer, KadMessage(Kind.FIND_NODE, key))).closer

    async def get_manifest(
        self, peer: PeerId, digest: bytes
    ) -> tuple[bytes | None, tuple[PeerAddresses, ...]]:
        """The manifest, verified, if `peer` has it; and peers nearer to it."""

        def check(answer: KadMessage) -> None:
            if answer.value is not None:
                check_manifest(digest, answer.value)

        request = KadMessage(Kind.GET_VALUE, manifest_key(digest))
        answer = await self._kad(peer, request, check)
        return answer.value, answer.closer

    async def put_manifest(self, peer: PeerId, digest: bytes, value: bytes) -> None:
        """Have `peer` keep a manifest; returns when it says that it did.

        Raises:
            PeerRefusedError: it has no room.
        """
        answer = await self._kad(peer, KadMessage(Kind.PUT_VALUE, manifest_key(digest), value))
        if answer.value != value:
            raise PeerRefusedError(
                f"{peer.short} did not keep the manifest {digest.hex()[:16]}...", reason="full"
            )

    async def announce(
        self, peer: PeerId, zone: str, ttl: int, chunks: Sequence[tuple[bytes, int]]
    ) -> tuple[Verdict, ...]:
        """Tell `peer` that we hold `chunks` (digest, size); one verdict per chunk."""
        digests = tuple(digest for digest, _ in chunks)
        request = Announce(zone, ttl, digests, tuple(size for _, size in chunks))
        return (await self._records(peer, request, Verdicts, len(digests))).verdicts

    async def find(self, peer: PeerId, digests: Sequence[bytes], limit: int) -> Found:
        return await self._records(peer, Find(tuple(digests), limit), Found, len(digests))

    async def withdraw(self, peer: PeerId, digests: Sequence[bytes]) -> int:
        request = Withdraw(tuple(digests))
        return (await self._records(peer, request, Withdrawn, len(digests))).removed

    async def near(self, peer: PeerId, targets: Sequence[int]) -> Neighbours:
        """Whom `peer` knows around itself and near `targets`; also tells it where we listen."""
        request = Near(tuple(targets), self._contacts.own_addresses())
        return await self._records(peer, request, Neighbours, len(targets))

    async def _kad(
        self,
        peer: PeerId,
        request: KadMessage,
        check: Callable[[KadMessage], None] = lambda answer: None,
    ) -> KadMessage:
        def decode(frame: bytes) -> KadMessage:
            answer = decode_message(frame)
            if answer.kind != request.kind or answer.key not in (b"", request.key):
                raise FormatError("An answer to another question than was asked.")
            check(answer)
            return answer

        payload = encode_message(request)
        return await self._rpc.request(peer, Question(KAD_PROTOCOL, payload, decode, MAX_KAD_FRAME))

    async def _records(self, peer: PeerId, request: Request, expected: type[_A], keys: int) -> _A:
        def decode(frame: bytes) -> _A | Refused:
            return decode_answer(frame, expected, keys)

        payload, bulk = encode_request(request), keys > _BULK_KEYS
        question = Question(RECORDS_PROTOCOL, payload, decode, MAX_RECORDS_FRAME, bulk)
        answer = await self._rpc.request(peer, question)
        if isinstance(answer, Refused):
            raise PeerRefusedError(
                f"{peer.short} refused a DHT request: {answer.reason}",
                reason=answer.reason,
                retry_after=answer.retry_after,
            )
        return answer
