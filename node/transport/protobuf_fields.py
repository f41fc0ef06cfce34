"""Protocol Buffers as far as libp2p's small messages need it: byte fields, read by hand.

Source: https://protobuf.dev/programming-guides/encoding. These messages come from far away and have
a handful of fields; a reader of one screen is easier to trust than a generated one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...errors import FormatError
from .streams import encode_varint

_VARINT: Final = 0
_BYTES: Final = 2
_FIXED_SIZES: Final = {1: 8, 5: 4}


def encode_field(number: int, data: bytes) -> bytes:
    """A field of bytes, a string, or a message inside the message."""
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(data)) + data


def read_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message as (number, bytes); others are skipped.

    Raises:
        FormatError: not a protobuf message.
    """
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise FormatError("the message has a field of impossible number")
        if wire_type == _VARINT:
            _, position = _read_varint(data, position)
            continue
        if wire_type == _BYTES:
            size, position = _read_varint(data, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise FormatError("the message has a field of unknown type")
        if size > len(data) - position:
            raise FormatError("the message is cut short")
        if wire_type == _BYTES:
            yield number, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position == len(data):
            raise FormatError("the message is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise FormatError("the message has a number out of range")
