"""Frames of `/meshnode/chunk/1`: sans-I/O, strict, bounded.

A frame is a 4-byte big-endian length, a header of that many bytes, and the raw body the header
announces. The header is one canonical msgpack array `[op, id, ...]`, so its second byte is the op:
after the first `PREFIX_BYTES` bytes a reader knows which bound holds, and only a HAVE may be large.
"Canonical" is checked by encoding again: one message, one form of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgpack

from ...errors import FormatError
from ..store.protocol import MAX_CHUNK_BYTES
from .lanes import LANES, Lane
from .messages import (
    INLINE_PUT_BYTES,
    MAX_BELIEVED,
    MAX_COUNT,
    MAX_DETAIL_BYTES,
    MAX_HAVE,
    MAX_LEASE_SECS,
    MAX_NAME_BYTES,
    MAX_REQUEST_ID,
    MAX_RETRY_AFTER_MS,
    MAX_VERSION_BYTES,
    Answer,
    AskInfo,
    Body,
    Cancel,
    Data,
    Get,
    Have,
    Held,
    Info,
    Message,
    PeerInfo,
    Proceed,
    Put,
    Refused,
    Release,
    Released,
    Request,
    Reserved,
    Stored,
)

PREFIX_BYTES = 6
"""Length field and the first two header bytes: enough to know the op and its bound."""
MAX_HEADER_BYTES = 1024 * 1024

_DIGEST_BYTES = 32
_SIGNATURE_BYTES = 64
_MOST_LANE = 127

OP_HAVE, OP_GET, OP_PUT, OP_BODY, OP_CANCEL, OP_INFO, OP_AUDIT, OP_RELEASE = range(1, 9)
OP_HELD, OP_DATA, OP_PROCEED, OP_STORED, OP_IS, OP_REFUSED, OP_RELEASED = range(0x40, 0x47)

Field: TypeAlias = int | bool | bytes | str | None

# --- fields -----------------------------------------------------------------------------------


def _integer(value: object, low: int, high: int, name: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise FormatError(f"A chunk message has no valid {name} ({low} to {high}).")
    return value


def _boolean(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise FormatError(f"A chunk message has no valid {name}.")
    return value


def _raw(value: object, size: int, name: str) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise FormatError(f"A chunk message has no valid {name} ({size} bytes).")
    return value


def _text(value: object, most: int, name: str) -> str:
    # A str from msgpack is valid UTF-8, so encoding it again cannot fail.
    if type(value) is not str or len(value.encode()) > most:
        raise FormatError(f"A chunk message has no valid {name} (at most {most} bytes of text).")
    return value


def _reason(value: object) -> str:
    word = _text(value, 32, "reason")
    if not (word.isascii() and word.replace("_", "").isalpha() and word.islower()):
        raise FormatError("A chunk message has no valid reason.")
    return word


def _digests(value: object) -> tuple[bytes, ...]:
    if type(value) is not bytes or len(value) % _DIGEST_BYTES:
        raise FormatError("A chunk message has no valid list of digests.")
    _integer(len(value) // _DIGEST_BYTES, 1, MAX_HAVE, "number of digests")
    return tuple(value[i : i + _DIGEST_BYTES] for i in range(0, len(value), _DIGEST_BYTES))


def pack_flags(flags: tuple[bool, ...]) -> bytes:
    """A bitmap: flag `i` is bit `i % 8` (least significant first) of byte `i // 8`."""
    digits = "".join("1" if flag else "0" for flag in reversed(flags))
    return int(digits or "0", 2).to_bytes((len(flags) + 7) // 8, "little")


def _flags(count: object, bitmap: object) -> tuple[bool, ...]:
    number = _integer(count, 1, MAX_HAVE, "number of flags")
    value = int.from_bytes(_raw(bitmap, (number + 7) // 8, "bitmap"), "little")
    if value >> number:
        raise FormatError("A chunk message has a bitmap with bits beyond its flags.")
    return tuple(digit == "1" for digit in reversed(f"{value:0{number}b}"))


def _or_none(value: object, low: int, high: int, name: str) -> int | None:
    return None if value is None else _integer(value, low, high, name)


def _lane(fields: tuple[object, ...], count: int) -> Lane:
    """The lane, which follows `count` fields unless it is the first one.

    Of the lanes of later versions nothing is known but that they are not for people.
    """
    if len(fields) == count:
        return Lane.INTERACTIVE
    return LANES[min(_integer(fields[count], 1, _MOST_LANE, "lane"), len(LANES) - 1)]


# --- ops --------------------------------------------------------------------------------------

Fields: TypeAlias = tuple[object, ...]


def _have(ident: int, fields: Fields) -> Have:
    return Have(ident, _digests(fields[0]), _lane(fields, 1))


def _release(ident: int, fields: Fields) -> Release:
    return Release(ident, _digests(fields[0]), _lane(fields, 1))


def _released(ident: int, fields: Fields) -> Released:
    return Released(ident, _integer(fields[0], 0, MAX_HAVE, "number of releases"))


def _get(ident: int, fields: Fields) -> Get:
    digest = _raw(fields[0], _DIGEST_BYTES, "digest")
    offset = _integer(fields[1], 0, MAX_CHUNK_BYTES, "offset")
    length = _or_none(fields[2], 0, MAX_CHUNK_BYTES, "length")
    return Get(ident, digest, offset, length, _lane(fields, 3))


def _ask_info(ident: int, fields: Fields) -> AskInfo:
    return AskInfo(ident, _lane(fields, 0))


def _put(ident: int, fields: Fields) -> Put:
    inline = _boolean(fields[3], "inline flag")
    # A body that does not follow at once may be announced too large, and is politely refused.
    most = INLINE_PUT_BYTES if inline else MAX_COUNT
    return Put(
        ident,
        _raw(fields[0], _DIGEST_BYTES, "digest"),
        _integer(fields[1], 0, most, "length"),
        _integer(fields[2], 1, MAX_LEASE_SECS, "lease"),
        inline,
        _lane(fields, 4),
    )


def _body(ident: int, fields: Fields) -> Body:
    return Body(ident, _integer(fields[0], 0, MAX_CHUNK_BYTES, "length"))


def _held(ident: int, fields: Fields) -> Held:
    return Held(ident, _flags(fields[0], fields[1]))


def _data(ident: int, fields: Fields) -> Data:
    size = _integer(fields[0], 0, MAX_CHUNK_BYTES, "chunk size")
    return Data(ident, size, _integer(fields[1], 0, size, "length"))


def _stored(ident: int, fields: Fields) -> Stored:
    issued = _integer(fields[0], 0, MAX_COUNT, "time of issue")
    until = _integer(fields[1], issued, MAX_COUNT, "end of the lease")
    return Stored(ident, issued, until, _raw(fields[2], _SIGNATURE_BYTES, "signature"))


def _info(ident: int, fields: Fields) -> Info:
    info = PeerInfo(
        name=_text(fields[0], MAX_NAME_BYTES, "name"),
        zone=_text(fields[1], MAX_NAME_BYTES, "zone"),
        available_bytes=min(
            _integer(fields[2], 0, MAX_COUNT, "number of available bytes"), MAX_BELIEVED
        ),
        version=_text(fields[3], MAX_VERSION_BYTES, "version"),
        chunks=min(_integer(fields[4], 0, MAX_COUNT, "number of chunks"), MAX_BELIEVED),
    )
    return Info(ident, info)


def _refused(ident: int, fields: Fields) -> Refused:
    return Refused(
        ident,
        _reason(fields[0]),
        _or_none(fields[1], 0, MAX_RETRY_AFTER_MS, "retry-after"),
        _text(fields[2], MAX_DETAIL_BYTES, "detail"),
    )


@dataclass(frozen=True, slots=True)
class _Op:
    name: str
    bound: int
    """Longest header in bytes."""
    fields: int | None
    """How many follow op and id; None: any (reserved ops)."""
    build: Callable[[int, Fields], Message]
    lane: bool = False
    """Whether a lane may follow the fields."""

    def fits(self, fields: int) -> bool:
        return (
            self.fields is None
            or fields == self.fields
            or (self.lane and fields == self.fields + 1)
        )


_SMALL = 128
_RESERVED_BOUND = 64 * 1024

_REQUESTS: dict[int, _Op] = {
    OP_HAVE: _Op("HAVE", MAX_HAVE * _DIGEST_BYTES + 32, 1, _have, True),
    OP_GET: _Op("GET", _SMALL, 3, _get, True),
    OP_PUT: _Op("PUT", _SMALL, 4, _put, True),
    OP_BODY: _Op("BODY", _SMALL, 1, _body),
    OP_CANCEL: _Op("CANCEL", _SMALL, 0, lambda ident, _: Cancel(ident)),
    OP_INFO: _Op("INFO", _SMALL, 0, _ask_info, True),
    OP_AUDIT: _Op("AUDIT", _RESERVED_BOUND, None, lambda i, _: Reserved(i, OP_AUDIT)),
    OP_RELEASE: _Op("RELEASE", MAX_HAVE * _DIGEST_BYTES + 32, 1, _release, True),
}
_ANSWERS: dict[int, _Op] = {
    OP_HELD: _Op("HELD", MAX_HAVE // 8 + 32, 2, _held),
    OP_DATA: _Op("DATA", _SMALL, 2, _data),
    OP_PROCEED: _Op("PROCEED", _SMALL, 0, lambda ident, _: Proceed(ident)),
    OP_STORED: _Op("STORED", _SMALL, 3, _stored),
    OP_IS: _Op("INFO answer", 1024, 5, _info),
    OP_REFUSED: _Op("REFUSED", 1024, 3, _refused),
    OP_RELEASED: _Op("RELEASED", _SMALL, 1, _released),
}
assert all(op.bound <= MAX_HEADER_BYTES for op in (_REQUESTS | _ANSWERS).values())


# --- bytes ------------------------------------------------------------------------------------


def _laned(lane: Lane) -> tuple[Field, ...]:
    return (int(lane),) if lane else ()


def _array(message: Message) -> tuple[Field, ...]:
    match message:
        case Have(ident, digests, lane):
            return (OP_HAVE, ident, b"".join(digests), *_laned(lane))
        case Get(ident, digest, offset, length, lane):
            return (OP_GET, ident, digest, offset, length, *_laned(lane))
        case Put(ident, digest, length, lease, inline, lane):
            return (OP_PUT, ident, digest, length, lease, inline, *_laned(lane))
        case Body(ident, length):
            return (OP_BODY, ident, length)
        case Cancel(ident):
            return (OP_CANCEL, ident)
        case AskInfo(ident, lane):
            return (OP_INFO, ident, *_laned(lane))
        case Release(ident, digests, lane):
            return (OP_RELEASE, ident, b"".join(digests), *_laned(lane))
        case Released(ident, count):
            return (OP_RELEASED, ident, count)
        case Reserved(ident, op):
            return (op, ident)
        case Held(ident, flags):
            return (OP_HELD, ident, len(flags), pack_flags(flags))
        case Data(ident, size, length):
            return (OP_DATA, ident, size, length)
        case Proceed(ident):
            return (OP_PROCEED, ident)
        case Stored(ident, issued, until, signature):
            return (OP_STORED, ident, issued, until, signature)
        case Info(ident, it):
            return (OP_IS, ident, it.name, it.zone, it.available_bytes, it.version, it.chunks)
        case Refused(ident, reason, retry_after_ms, detail):
            return (OP_REFUSED, ident, reason, retry_after_ms, detail)


def _pack(array: object) -> bytes:
    packed: bytes = msgpack.packb(array, use_bin_type=True)
    return packed


def encode(message: Message) -> bytes:
    """Length field and header of `message`; its body, if any, is for the caller to send."""
    header = _pack(_array(message))
    return len(header).to_bytes(4, "big") + header


def _ops(request: bool) -> dict[int, _Op]:
    return _REQUESTS if request else _ANSWERS


def header_rest(prefix: bytes, *, request: bool) -> int:
    """How many header bytes follow the first `PREFIX_BYTES` bytes of a frame.

    Args:
        request: whether the frame must be a request (seen by a server) or an answer.

    Raises:
        FormatError: no known op of that side, or a length outside the bound of the op.
    """
    length = int.from_bytes(prefix[:4], "big")
    op = _ops(request).get(prefix[5])
    if op is None:
        raise FormatError(f"{prefix[5]} is no op of {'requests' if request else 'answers'}.")
    if not 3 <= length <= op.bound:
        raise FormatError(f"A {op.name} header of {length} bytes is outside 3 to {op.bound}.")
    return length - 2


def _decode(header: bytes, ops: dict[int, _Op]) -> Message:
    try:
        array: object = msgpack.unpackb(
            header,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_array_len=64,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise FormatError("A chunk message is not valid msgpack.") from error
    if type(array) is not tuple or len(array) < 2:
        raise FormatError("A chunk message is not an array of op, id and fields.")
    op = ops.get(_integer(array[0], 1, 127, "op"))
    if op is None:
        raise FormatError(f"{array[0]} is no op that may be sent here.")
    if len(header) > op.bound or not op.fits(len(array) - 2):
        raise FormatError(f"A {op.name} message has a wrong size or number of fields.")
    message = op.build(_integer(array[1], 1, MAX_REQUEST_ID, "request id"), array[2:])
    # The fields of a reserved op are not ours to judge; all others are flat and checked by now.
    if op.fields is not None and _pack(array) != header:
        raise FormatError(f"A {op.name} message is not in canonical form.")
    return message


def decode_request(header: bytes) -> Request:
    """The request a complete header says.

    Raises:
        FormatError: anything but the canonical form of a request within its bounds.
    """
    message = _decode(header, _REQUESTS)
    assert isinstance(message, Request)
    return message


def decode_answer(header: bytes) -> Answer:
    """The answer a complete header says.

    Raises:
        FormatError: anything but the canonical form of an answer within its bounds.
    """
    message = _decode(header, _ANSWERS)
    assert isinstance(message, Answer)
    return message
