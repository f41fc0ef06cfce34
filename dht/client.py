"""What can be asked of another node, one coroutine per question.

All raise PeerError or MembershipError when the peer fails; an answer that is malformed counts as a
failure of the peer and is a PeerError as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import FormatError, PeerError, PeerRefusedError, RefusedError
from .contacts import Contacts
from .handover_wire import (
    HandoverAnswer,
    HandoverRequest,
    Hint,
    Hints,
    HintsTaken,
    Holding,
    MovedValue,
    MovedValues,
    StillHeld,
    ValuesKept,
    decode_handover_answer,
    encode_handover_request,
)
from .kad_wire import KadMessage, Kind, PeerAddresses, decode_message, encode_message
from .keyspace import DIGEST_BYTES
from .notices import Notice, decode_bundle
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
from .settings import (
    HANDOVER_PROTOCOL,
    KAD_PROTOCOL,
    MAX_HANDOVER_FRAME,
    MAX_KAD_FRAME,
    MAX_RECORDS_FRAME,
    RECORDS_PROTOCOL,
)
from .validators import Checked, Validators

OUTDATED = "outdated"
"""Reason of a peer that keeps a newer value than the one it was given."""

_BULK_KEYS = 64
_A = TypeVar("_A", Verdicts, Found, Withdrawn, Neighbours)


@dataclass(frozen=True, slots=True)
class FoundValue:
    """A value that a peer gave, and what its validator said."""

    value: bytes
    checked: Checked


class Client:
    """The asking side of both protocols."""

    def __init__(self, rpc: Rpc, contacts: Contacts, validators: Validators) -> None:
        self._rpc = rpc
        self._contacts = contacts
        self._validators = validators

    async def ping(self, peer: PeerId) -> None:
        await self._kad(peer, KadMessage(Kind.PING))

    async def find_node(self, peer: PeerId, key: bytes) -> tuple[PeerAddresses, ...]:
        """The peers nearest to the position of `key` that `peer` knows."""
        return (await self._kad(peer, KadMessage(Kind.FIND_NODE, key))).closer

    async def get_value(
        self, peer: PeerId, key: bytes, now: float
    ) -> tuple[FoundValue | None, tuple[PeerAddresses, ...]]:
        """The value of `key`, checked, if `peer` has one that is still valid; and nearer peers."""
        found: list[FoundValue] = []

        def check(answer: KadMessage) -> None:
            if answer.value is not None:
                try:
                    checked = self._validators.check(key, answer.value, now)
                except RefusedError:
                    # Expired by our clock only, perhaps: as good as nothing, but no misbehaviour.
                    return
                found.append(FoundValue(answer.value, checked))

        answer = await self._kad(peer, KadMessage(Kind.GET_VALUE, key), check)
        return (found[0] if found else None), answer.closer

    async def get_notices(
        self, peer: PeerId, key: bytes
    ) -> tuple[list[Notice] | None, tuple[PeerAddresses, ...]]:
        """All notices `peer` keeps under `key`, checked, None when there are none; nearer peers."""
        found: list[Notice] = []

        def check(answer: KadMessage) -> None:
            if answer.value is not None:
                found.extend(decode_bundle(key, answer.value))

        answer = await self._kad(peer, KadMessage(Kind.GET_VALUE, key), check)
        return found or None, answer.closer

    async def put_value(self, peer: PeerId, key: bytes, value: bytes) -> None:
        """Have `peer` keep a value; returns when it says that it did.

        Raises:
            PeerRefusedError: it has no room ("full"), or a newer one ("outdated").
        """
        answer = await self._kad(peer, KadMessage(Kind.PUT_VALUE, key, value))
        if answer.value != value:
            raise PeerRefusedError(
                f"{peer.short} did not keep the value of {key[-DIGEST_BYTES:].hex()[:16]}...",
                reason="full" if answer.value is None else OUTDATED,
            )

    async def announce(
        self, peer: PeerId, zone: str, ttl: int, digests: Sequence[bytes], sizes: Sequence[int]
    ) -> tuple[Verdict, ...]:
        """Tell `peer` that we hold chunks of these `sizes`; one verdict per chunk."""
        request = Announce(zone, ttl, tuple(digests), tuple(sizes))
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

    async def hint(self, peer: PeerId, hints: Sequence[Hint]) -> int:
        """Tell `peer` what it has become responsible for; how many keys it will ask about."""
        match await self._handover(peer, Hints(tuple(hints))):
            case HintsTaken(taken):
                return taken
        raise PeerError(f"{peer.short} answered another question.")

    async def still_held(
        self, peer: PeerId, digests: Sequence[bytes]
    ) -> tuple[str, tuple[int | None, ...]]:
        """The zone of `peer`, and of each chunk its size, or None where it is not held."""
        match await self._handover(peer, StillHeld(tuple(digests))):
            case Holding(zone, sizes):
                return zone, sizes
        raise PeerError(f"{peer.short} answered another question.")

    async def move_values(self, peer: PeerId, values: Sequence[MovedValue]) -> int:
        """Pass values on to `peer`; how many it keeps."""
        match await self._handover(peer, MovedValues(tuple(values))):
            case ValuesKept(verdicts):
                return verdicts.count(Verdict.STORED)
        raise PeerError(f"{peer.short} answered another question.")

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
            raise _refusal(peer, answer)
        return answer

    async def _handover(self, peer: PeerId, request: HandoverRequest) -> HandoverAnswer:
        def decode(frame: bytes) -> HandoverAnswer:
            return decode_handover_answer(frame, request)

        payload = encode_handover_request(request)
        question = Question(HANDOVER_PROTOCOL, payload, decode, MAX_HANDOVER_FRAME, bulk=True)
        answer = await self._rpc.request(peer, question)
        if isinstance(answer, Refused):
            raise _refusal(peer, answer)
        return answer


def _refusal(peer: PeerId, answer: Refused) -> PeerRefusedError:
    return PeerRefusedError(
        f"{peer.short} refused a DHT request: {answer.reason}",
        reason=answer.reason,
        retry_after=answer.retry_after,
    )
