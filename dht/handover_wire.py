"""Messages of `/meshnode/handover/1`: records and values on their way to other nodes.

A node passes on what it keeps as hints, which prove nothing: the receiver asks the holder itself
which of the chunks it still has. Values prove themselves and travel as they are, with the time they
have left, so that moving prolongs nobody's life. msgpack arrays and packed columns, as in
`records_wire`; the tables are in docs/dht.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from ..errors import FormatError
from .kad_wire import MAX_KEY_BYTES
from .peer_id import PeerId
from .records_wire import (
    Refused,
    Verdict,
    decode_addresses,
    decode_digests,
    decode_refusal,
    decode_zone,
    encode_refusal,
)
from .settings import MAX_HANDOVER_FRAME, MAX_KEYS_PER_MESSAGE, MAX_VALUE_BYTES
from .signing import pack, unpack_bounded

MAX_HINTED_PEERS = 256
MAX_VALUES = 256
MAX_VALUES_BYTES = MAX_HANDOVER_FRAME - 64 * 1024
_MAX_TTL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Hint:
    """`publisher`, who may be found at `addresses`, is said to hold `digests`."""

    publisher: PeerId
    addresses: tuple[str, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Hints:
    """You are now responsible for these; ask the publishers. At most 4,096 digests in all."""

    hints: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class StillHeld:
    """Which of these chunks do you still hold?"""

    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MovedValue:
    """A value under `key` that is kept for another `ttl` seconds."""

    key: bytes
    ttl: int
    value: bytes


@dataclass(frozen=True, slots=True)
class MovedValues:
    """You are now responsible for these."""

    values: tuple[MovedValue, ...]


HandoverRequest = Hints | StillHeld | MovedValues


@dataclass(frozen=True, slots=True)
class HintsTaken:
    """How many of the hinted digests will be asked about; the others are known or unwanted."""

    digests: int


@dataclass(frozen=True, slots=True)
class Holding:
    """The size of each chunk asked about, None where it is not held, and our zone."""

    zone: str
    sizes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ValuesKept:
    verdicts: tuple[Verdict, ...]


HandoverAnswer = HintsTaken | Holding | ValuesKept | Refused

_HINTS, _STILL_HELD, _VALUES = 1, 2, 3


# --- encoding ---------------------------------------------------------------------------------


def encode_handover_request(request: HandoverRequest) -> bytes:
    match request:
        case Hints(hints):
            rows = [[bytes(h.publisher), list(h.addresses), b"".join(h.digests)] for h in hints]
            return pack([_HINTS, rows])
        case StillHeld(digests):
            return pack([_STILL_HELD, b"".join(digests)])
        case MovedValues(values):
            return pack([_VALUES, [[moved.key, moved.ttl, moved.value] for moved in values]])


def encode_handover_answer(answer: HandoverAnswer) -> bytes:
    match answer:
        case HintsTaken(digests):
            return pack([_HINTS, digests])
        case Holding(zone, sizes):
            held = bytes(size is not None for size in sizes)
            column = Struct(f">{len(sizes)}I").pack(*(size or 0 for size in sizes))
            return pack([_STILL_HELD, zone, held, column])
        case ValuesKept(verdicts):
            return pack([_VALUES, bytes(verdicts)])
        case Refused():
            return encode_refusal(answer)


# --- decoding ---------------------------------------------------------------------------------


def decode_handover_request(data: bytes) -> HandoverRequest:
    """Parse and check a request.

    Raises:
        FormatError: anything else than a sound message within all bounds.
    """
    match unpack_bounded(data, MAX_HANDOVER_FRAME, "A handover message"):
        case [1, list(rows)] if len(rows) <= MAX_HINTED_PEERS:
            hints = tuple(_hint(row) for row in rows)
            if sum(len(hint.digests) for hint in hints) > MAX_KEYS_PER_MESSAGE:
                raise FormatError("More hints than one message may carry.")
            return Hints(hints)
        case [2, bytes(column)]:
            return StillHeld(decode_digests(column))
        case [3, list(rows)] if len(rows) <= MAX_VALUES:
            return MovedValues(tuple(_moved(row) for row in rows))
    raise FormatError("Bytes are not a request of the handover protocol.")


def decode_handover_answer(data: bytes, request: HandoverRequest) -> HandoverAnswer:
    """Parse and check the answer to `request`.

    Raises:
        FormatError: anything else than a sound answer to it, or `Refused`.
    """
    message = unpack_bounded(data, MAX_HANDOVER_FRAME, "A handover answer")
    if (refused := decode_refusal(message)) is not None:
        return refused
    match request, message:
        case Hints(hints), [1, int(taken)]:
            if 0 <= taken <= sum(len(hint.digests) for hint in hints):
                return HintsTaken(taken)
        case StillHeld(digests), [2, str(zone), bytes(held), bytes(column)]:
            if len(held) == len(digests) and len(column) == 4 * len(digests):
                sizes = Struct(f">{len(digests)}I").unpack(column)
                return Holding(decode_zone(zone), _sizes(held, sizes))
        case MovedValues(values), [3, bytes(verdicts)] if len(verdicts) == len(values):
            try:
                return ValuesKept(tuple(map(Verdict, verdicts)))
            except ValueError as error:
                raise FormatError("An unknown verdict about a value.") from error
    raise FormatError("Bytes are not the answer to a handover request.")


def _hint(row: object) -> Hint:
    match row:
        case [bytes(publisher), list(addresses), bytes(column)]:
            peer = PeerId.from_bytes(publisher)
            return Hint(peer, decode_addresses(addresses), decode_digests(column))
    raise FormatError("A hint is malformed.")


def _moved(row: object) -> MovedValue:
    match row:
        case [bytes(key), int(ttl), bytes(value)]:
            if len(key) <= MAX_KEY_BYTES and 0 < ttl <= _MAX_TTL and len(value) <= MAX_VALUE_BYTES:
                return MovedValue(key, ttl, value)
    raise FormatError("A value that is handed over is malformed.")


def _sizes(held: bytes, sizes: Sequence[int]) -> tuple[int | None, ...]:
    if not set(held) <= {0, 1}:
        raise FormatError("A chunk is held or not.")
    return tuple(size if flag else None for flag, size in zip(held, sizes, strict=True))
