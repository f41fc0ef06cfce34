"""msgpack as strangers may send it: bounded, of plain types only, never half understood."""

from __future__ import annotations

import msgpack

from ...errors import FormatError

Plain = None | bool | int | float | str | bytes | list["Plain"] | dict[str, "Plain"]


def pack(value: Plain) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes, *, max_bytes: int, what: str) -> Plain:
    """The one value in `data`; `what` names it in errors.

    Nothing larger than `data` is ever allocated: msgpack checks each length against its input.

    Raises:
        FormatError: longer than `max_bytes`, not msgpack, more than one value, extension types or
            keys that are not text.
    """
    if len(data) > max_bytes:
        raise FormatError(f"{what} is {len(data)} bytes long; at most {max_bytes} are allowed.")
    try:
        value: Plain = msgpack.unpackb(
            data, raw=False, strict_map_key=True, ext_hook=_no_extension, max_ext_len=0
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FormatError(f"{what} is not valid msgpack.") from error
    return value


def _no_extension(code: int, data: bytes) -> Plain:
    raise ValueError("extension types are not used")
