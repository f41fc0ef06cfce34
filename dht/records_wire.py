"""Messages of `/meshnode/records/1`: thousands of chunk records in one request.

Each message is a msgpack array whose first element is its kind. Digests, sizes, answers per key
travel as packed columns (one byte string each), so that a batch costs a few object constructions,
not thousands. The tables are in docs/dht.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from math import ceil
from struct import Struct
from typing import NamedTuple, TypeVar

import msgpack

from ..errors import FormatError
from .kad_wire import MAX_ADDRESSES_PER_PEER, PeerAddresses
from .keyspace import BITS, DIGEST_BYTES
from .peer_id import PeerId
from .plain_msgpack import unpack
from .settings import MAX_KEYS_PER_MESSAGE, MAX_RECORDS_FRAME

BUSY = "busy"
"""Reason of a refusal that `Refused.retry_after` undoes."""

MAX_ZONE_CHARS = 64
MAX_TARGETS = 64
MAX_NEIGHBOURS = 256
MAX_HOLDERS_PER_KEY = 20
MAX_HOLDER_PEERS = 1024
MAX_HOLDER_ROWS = 48 * 1024
_MAX_ADDRESS_CHARS = 300
_MAX_RETRY_MS = 3_600_000
_MAX_TTL = 2**31 - 1
_MAX_SIZE = 2**32 - 1
_HOLDER = Struct(">HII")  # index into the table of peers, size in bytes, seconds to live


class Verdict(IntEnum):
    """What became of one announced key."""

    STORED = 0
    PEER_FULL = 1
    """The announcing peer has used up its share."""
    FAR = 2
    """The node is full, and keeps what lies nearer to it."""
    INVALID = 3
    OUTDATED = 4
    """The node keeps a newer value."""


_VERDICTS = bytes(Verdict)
_VERDICT_OF = tuple(Verdict)


@dataclass(frozen=True, slots=True)
class Announce:
    """The sender holds these chunks, in `zone`, for `ttl` seconds from now."""

    zone: str
    ttl: int
    digests: tuple[bytes, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Find:
    """Who holds these chunks? At most `limit` holders for each."""

    digests: tuple[bytes, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The sender no longer holds these chunks."""

    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Near:
    """Whom do you know around yourself and nearest to these positions?

    `addresses` is where the asker itself listens: a connection it dialled does not tell.
    """

    targets: tuple[int, ...]
    addresses: tuple[str, ...]


Request = Announce | Find | Withdraw | Near


@dataclass(frozen=True, slots=True)
class HolderPeer:
    peer: PeerId
    zone: str
    addresses: tuple[str, ...]


class Holder(NamedTuple):
    """`peer` indexes `Found.peers`; `ttl` is in seconds from now."""

    peer: int
    size: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Per asked digest, in the same order, its holders. Digests may share a row."""

    peers: tuple[HolderPeer, ...]
    holders: tuple[tuple[Holder, ...], ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    removed: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`peers` holds every peer the sender believes to share `bits` leading bits with it, and
    others near the targets."""

    bits: int
    peers: tuple[PeerAddresses, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """`retry_after`, in seconds, when asking again by then can help."""

    reason: str
    retry_after: float | None = None


Answer = Verdicts | Found | Withdrawn | Neighbours | Refused

_ANNOUNCE, _FIND, _WITHDRAW, _NEAR, _REFUSED = 1, 2, 3, 4, 0


# --- encoding ---------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    match request:
        case Announce(zone, ttl, digests, sizes):
            columns = b"".join(digests), Struct(f">{len(sizes)}I").pack(*sizes)
            return _pack([_ANNOUNCE, zone, ttl, *columns])
        case Find(digests, limit):
            return _pack([_FIND, b"".join(digests), limit])
        case Withdraw(digests):
            return _pack([_WITHDRAW, b"".join(digests)])
        case Near(targets, addresses):
            column = b"".join(target.to_bytes(BITS // 8, "big") for target in targets)
            return _pack([_NEAR, column, list(addresses)])


def encode_answer(answer: Answer) -> bytes:
    match answer:
        case Verdicts(verdicts):
            return _pack([_ANNOUNCE, bytes(verdicts)])
        case Found(peers, holders):
            table = [[bytes(p.peer), p.zone, list(p.addresses)] for p in peers]
            counts = bytes(map(len, holders))
            numbers = chain.from_iterable(chain.from_iterable(holders))
            rows = Struct(">" + "HII" * sum(counts)).pack(*numbers)
            return _pack([_FIND, table, counts, rows])
        case Withdrawn(removed):
            return _pack([_WITHDRAW, removed])
        case Neighbours(bits, near):
            return _pack([_NEAR, bits, [[bytes(p.peer), list(p.addresses)] for p in near]])
        case Refused():
            return encode_refusal(answer)


def encode_refusal(refused: Refused) -> bytes:
    wait = refused.retry_after
    millis = [] if wait is None else [min(ceil(1000 * wait), _MAX_RETRY_MS)]
    return _pack([_REFUSED, refused.reason, *millis])


def _pack(message: list[object]) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed


# --- decoding ---------------------------------------------------------------------------------


def decode_request(data: bytes) -> Request:
    """Parse and check a request.

    Raises:
        FormatError: anything else than a sound message within all bounds.
    """
    match _unpack(data):
        case [1, str(zone), int(ttl), bytes(keys), bytes(sizes)]:
            digests = decode_digests(keys)
            if len(sizes) != 4 * len(digests) or not 0 < ttl <= _MAX_TTL:
                raise FormatError("An announcement whose columns do not fit each other.")
            return Announce(
                decode_zone(zone), ttl, digests, Struct(f">{len(digests)}I").unpack(sizes)
            )
        case [2, bytes(keys), int(limit)] if 0 < limit <= MAX_HOLDERS_PER_KEY:
            return Find(decode_digests(keys), limit)
        case [3, bytes(keys)]:
            return Withdraw(decode_digests(keys))
        case [4, bytes(column), list(addresses)] if len(column) <= MAX_TARGETS * DIGEST_BYTES:
            targets = tuple(int.from_bytes(target, "big") for target in decode_digests(column))
            return Near(targets, decode_addresses(addresses))
    raise FormatError("Bytes are not a request of the records protocol.")


_A = TypeVar("_A", Verdicts, Found, Withdrawn, Neighbours)


def decode_answer(data: bytes, expected: type[_A], keys: int) -> _A | Refused:
    """Parse and check the answer to a request about `keys` keys.

    Raises:
        FormatError: anything else than a sound answer of that kind, or `Refused`.
    """
    answer = _decode_any_answer(_unpack(data), keys)
    if isinstance(answer, expected | Refused):
        return answer
    raise FormatError("An answer to another question than was asked.")


def decode_refusal(message: object) -> Refused | None:
    """The refusal in an unpacked answer; None when it is something else."""
    match message:
        case [0, str(reason)]:
            return Refused(_word(reason))
        case [0, str(reason), int(millis)] if 0 <= millis <= _MAX_RETRY_MS:
            return Refused(_word(reason), millis / 1000)
    return None


def _decode_any_answer(message: object, keys: int) -> Answer:
    if (refused := decode_refusal(message)) is not None:
        return refused
    match message:
        case [1, bytes(verdicts)] if len(verdicts) == keys:
            if verdicts.translate(None, _VERDICTS):
                raise FormatError("An unknown verdict about an announced key.")
            return Verdicts(tuple(map(_VERDICT_OF.__getitem__, verdicts)))
        case [2, list(table), bytes(counts), bytes(rows)] if len(counts) == keys:
            return _found(table, counts, rows)
        case [3, int(removed)] if 0 <= removed <= keys:
            return Withdrawn(removed)
        case [4, int(bits), list(near)] if 0 <= bits <= BITS and len(near) <= MAX_NEIGHBOURS:
            return Neighbours(bits, tuple(_neighbour(entry) for entry in near))
    raise FormatError("Bytes are not an answer of the records protocol.")


def _unpack(data: bytes) -> object:
    if len(data) > MAX_RECORDS_FRAME:
        raise FormatError(f"A message of {len(data)} bytes; at most {MAX_RECORDS_FRAME}.")
    return unpack(data)


def decode_digests(column: bytes) -> tuple[bytes, ...]:
    """The digests in a packed column, as many as a message may carry.

    Raises:
        FormatError: not such a column.
    """
    count, rest = divmod(len(column), DIGEST_BYTES)
    if rest or count > MAX_KEYS_PER_MESSAGE:
        raise FormatError(f"A column of {len(column)} bytes is not a list of digests we accept.")
    return tuple(column[i : i + DIGEST_BYTES] for i in range(0, len(column), DIGEST_BYTES))


def decode_zone(text: str) -> str:
    """`text` when it can be a zone; FormatError otherwise."""
    if len(text) > MAX_ZONE_CHARS or not (text.isprintable() or not text):
        raise FormatError("A zone is a short printable word.")
    return text


def _word(text: str) -> str:
    return "".join(char for char in text[:100] if char.isprintable())


def _found(table: Sequence[object], counts: bytes, rows: bytes) -> Found:
    if len(table) > MAX_HOLDER_PEERS or max(counts, default=0) > MAX_HOLDERS_PER_KEY:
        raise FormatError("More holders than were asked for.")
    if len(rows) != _HOLDER.size * sum(counts):
        raise FormatError("A list of holders whose columns do not fit each other.")
    peers = tuple(_holder_peer(entry) for entry in table)
    # Chunks of one announcement have the same holders: each row of bytes is decoded once.
    of_bytes: dict[bytes, tuple[Holder, ...]] = {b"": ()}
    holders: list[tuple[Holder, ...]] = []
    start = 0
    for count in counts:
        row = rows[start : start + _HOLDER.size * count]
        start += len(row)
        decoded = of_bytes.get(row)
        if decoded is None:
            decoded = of_bytes[row] = _row(row, len(peers))
        holders.append(decoded)
    return Found(peers, tuple(holders))


def _row(row: bytes, peers: int) -> tuple[Holder, ...]:
    decoded = tuple(map(Holder._make, _HOLDER.iter_unpack(row)))
    if any(holder.peer >= peers for holder in decoded):
        raise FormatError("A holder that is not in the table of peers.")
    return decoded


def _holder_peer(entry: object) -> HolderPeer:
    match entry:
        case [bytes(peer), str(zone), list(addresses)]:
            return HolderPeer(
                PeerId.from_bytes(peer), decode_zone(zone), decode_addresses(addresses)
            )
    raise FormatError("An entry of the table of peers is malformed.")


def _neighbour(entry: object) -> PeerAddresses:
    match entry:
        case [bytes(peer), list(addresses)]:
            return PeerAddresses(PeerId.from_bytes(peer), decode_addresses(addresses))
    raise FormatError("An entry of the list of neighbours is malformed.")


def decode_addresses(found: Sequence[object]) -> tuple[str, ...]:
    """The first eight texts of a list; FormatError when one of them is no short text."""
    texts = found[:MAX_ADDRESSES_PER_PEER]
    if not all(isinstance(text, str) and len(text) <= _MAX_ADDRESS_CHARS for text in texts):
        raise FormatError("An address is a short text.")
    return tuple(str(text) for text in texts)
