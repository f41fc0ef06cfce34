"""Messages of `/meshnode/peers/1`: what members know of each other, compared and made equal.

Participants: two members. One sends hashes of what it knows, by stretch of the keyspace; the other
answers with what it knows in those stretches that differ; then each gives the other what it lacks.
A second kind of message carries news, unasked, and names of peers that did not answer.

Non-goals: nobody is believed here. Records prove themselves, the rest is a hint.

Each message is a msgpack array that begins with its kind. Columns of numbers are byte strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from struct import Struct
from typing import TypeVar

import msgpack

from ..errors import FormatError
from .peer_id import PeerId
from .peer_record import MAX_RECORD_BYTES
from .plain_msgpack import unpack
from .records_wire import Refused

PEERS_PROTOCOL = "/meshnode/peers/1"
MAX_PEERS_FRAME = 512 * 1024
MAX_RECORDS = 256
MAX_WANTED = 256
MAX_ROWS = 8192
MAX_SUSPECTS = 64
MAX_BITS = 10
HASH_BYTES = 8
_MAX_RETRY_MS = 3_600_000
_ROW = Struct(">8sQI")  # start of the peer's position, sequence number, seconds to live
_TTL = Struct(">I")


@dataclass(frozen=True, slots=True)
class Row:
    """`name`: the first 8 bytes of a peer's position; `ttl`: seconds its record is still good."""

    name: bytes
    seq: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Told:
    """An encoded record, not looked at yet, and for how many seconds the teller believes it."""

    record: bytes
    ttl: int


@dataclass(frozen=True, slots=True)
class Compare:
    """What the sender knows: a hash for each of 2 ** `bits` stretches of the keyspace."""

    bits: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class Swap:
    """Records for the receiver, and names of peers whose records the sender wants."""

    wanted: tuple[bytes, ...]
    told: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class News:
    """Records that are new to the sender, and peers that do not answer it."""

    told: tuple[Told, ...]
    suspects: tuple[PeerId, ...]


Request = Compare | Swap | News


@dataclass(frozen=True, slots=True)
class Listing:
    """`differing`: numbers of the stretches that differ; `rows`: all the sender knows in them."""

    differing: frozenset[int]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Swapped:
    told: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Noted:
    """News arrived."""


Answer = Listing | Swapped | Noted | Refused

_COMPARE, _SWAP, _NEWS, _REFUSED = 1, 2, 3, 0


# --- encoding ---------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    match request:
        case Compare(bits, hashes):
            return _pack([_COMPARE, bits, hashes])
        case Swap(wanted, told):
            return _pack([_SWAP, b"".join(wanted), *_told_columns(told)])
        case News(told, suspects):
            return _pack([_NEWS, *_told_columns(told), [bytes(peer) for peer in suspects]])


def encode_answer(answer: Answer) -> bytes:
    match answer:
        case Listing(differing, rows):
            stretches = Struct(f">{len(differing)}H").pack(*sorted(differing))
            packed = b"".join(_ROW.pack(row.name, row.seq, row.ttl) for row in rows)
            return _pack([_COMPARE, stretches, packed])
        case Swapped(told):
            return _pack([_SWAP, *_told_columns(told)])
        case Noted():
            return _pack([_NEWS])
        case Refused(reason, retry_after):
            millis = [] if retry_after is None else [min(ceil(1000 * retry_after), _MAX_RETRY_MS)]
            return _pack([_REFUSED, reason, *millis])


def _told_columns(told: Sequence[Told]) -> tuple[list[bytes], bytes]:
    return [one.record for one in told], b"".join(_TTL.pack(one.ttl) for one in told)


def _pack(message: list[object]) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed


# --- decoding ---------------------------------------------------------------------------------


def decode_request(data: bytes) -> Request:
    """Parse and check a request; the records in it are not looked at.

    Raises:
        FormatError: anything else than a sound message within all bounds.
    """
    match _unpack(data):
        case [1, int(bits), bytes(hashes)] if 0 <= bits <= MAX_BITS:
            if len(hashes) != HASH_BYTES << bits:
                raise FormatError("As many hashes as stretches of the keyspace are needed.")
            return Compare(bits, hashes)
        case [2, bytes(wanted), list(records), bytes(ttls)]:
            return Swap(_names(wanted), _told(records, ttls))
        case [3, list(records), bytes(ttls), list(suspects)]:
            return News(_told(records, ttls), _suspects(suspects))
    raise FormatError("Bytes are not a request of the peers protocol.")


_A = TypeVar("_A", Listing, Swapped, Noted)


def decode_answer(data: bytes, expected: type[_A]) -> _A | Refused:
    """Parse and check an answer; the records in it are not looked at.

    Raises:
        FormatError: anything else than a sound answer of that kind, or `Refused`.
    """
    answer = _decode_any_answer(_unpack(data))
    if isinstance(answer, expected | Refused):
        return answer
    raise FormatError("An answer to another question than was asked.")


def _decode_any_answer(message: object) -> Answer:
    match message:
        case [0, str(reason)]:
            return Refused(_word(reason))
        case [0, str(reason), int(millis)] if 0 <= millis <= _MAX_RETRY_MS:
            return Refused(_word(reason), millis / 1000)
        case [1, bytes(stretches), bytes(rows)]:
            return Listing(_stretches(stretches), _rows(rows))
        case [2, list(records), bytes(ttls)]:
            return Swapped(_told(records, ttls))
        case [3]:
            return Noted()
    raise FormatError("Bytes are not an answer of the peers protocol.")


def _unpack(data: bytes) -> object:
    if len(data) > MAX_PEERS_FRAME:
        raise FormatError(f"A message of {len(data)} bytes; at most {MAX_PEERS_FRAME}.")
    return unpack(data)


def _names(column: bytes) -> tuple[bytes, ...]:
    if len(column) % HASH_BYTES or len(column) > MAX_WANTED * HASH_BYTES:
        raise FormatError(f"{len(column)} bytes are not a list of names we accept.")
    return tuple(column[i : i + HASH_BYTES] for i in range(0, len(column), HASH_BYTES))


def _told(records: Sequence[object], ttls: bytes) -> tuple[Told, ...]:
    if len(records) > MAX_RECORDS or len(ttls) != _TTL.size * len(records):
        raise FormatError("A list of peer records whose columns do not fit each other.")
    out = []
    for record, (ttl,) in zip(records, _TTL.iter_unpack(ttls), strict=True):
        if not isinstance(record, bytes) or len(record) > MAX_RECORD_BYTES:
            raise FormatError("A peer record is a short byte string.")
        out.append(Told(record, ttl))
    return tuple(out)


def _suspects(names: Sequence[object]) -> tuple[PeerId, ...]:
    if len(names) > MAX_SUSPECTS or not all(isinstance(name, bytes) for name in names):
        raise FormatError("Peers that do not answer are a short list of peer ids.")
    return tuple(PeerId.from_bytes(name) for name in names if isinstance(name, bytes))


def _stretches(column: bytes) -> frozenset[int]:
    count, rest = divmod(len(column), 2)
    if rest or count > 1 << MAX_BITS:
        raise FormatError(f"{len(column)} bytes are not a list of stretches of the keyspace.")
    return frozenset(Struct(f">{count}H").unpack(column))


def _rows(column: bytes) -> tuple[Row, ...]:
    if len(column) % _ROW.size or len(column) > MAX_ROWS * _ROW.size:
        raise FormatError(f"{len(column)} bytes are not a listing we accept.")
    return tuple(Row(*fields) for fields in _ROW.iter_unpack(column))


def _word(text: str) -> str:
    return "".join(char for char in text[:100] if char.isprintable())
