"""msgpack as peers and disks may hold it: arrays of plain values, and nothing else.

The DHT uses no maps and no extension types, and a map from a stranger is worse than useless: keys
that cannot be hashed make the decoder raise what no caller expects.
"""

from __future__ import annotations

import msgpack

from ..errors import FormatError

MAX_ARRAY = 1024
"""Longest array in any message; msgpack takes memory for an array before it has read it."""


def unpack(data: bytes) -> object:
    """The one value in `data`.

    Raises:
        FormatError: not msgpack, more than one value, a map with entries, an extension type,
            or an array of more than `MAX_ARRAY` elements.
    """
    try:
        value: object = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
            max_array_len=MAX_ARRAY,
            ext_hook=_no_extension,
        )
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise FormatError("Bytes are not the msgpack we speak.") from error
    return value


def _no_extension(code: int, data: bytes) -> object:
    raise ValueError("extension types are not used")
