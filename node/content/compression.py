"""zstd per chunk: whether it pays, and inflating that never exceeds what was announced.

Format: RFC 8878. Frames carry their content size and no dictionary.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal

import zstandard

from ...errors import FormatError, UsageError
from .limits import MAX_STORED_BYTES, Buffer


class Codec(IntEnum):
    """How a chunk's plaintext became the bytes that are sealed."""

    RAW = 0
    ZSTD = 1


CompressionMode = Literal["auto", "zstd", "none"]

DEFAULT_LEVEL: Final = 3
MAX_LEVEL: Final = 19  # above, zstd may use windows larger than a chunk
_SAMPLE_BYTES: Final = 64 * 1024
_WORTH_IT: Final = 0.95  # "auto" wants a saving of 5 %
_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Compressor:
    """A compression policy. Safe for many threads at once; zstd releases the GIL.

    Args:
        mode: "auto" compresses when the first 64 KiB and then the whole shrink by 5 %;
            "zstd" when the whole shrinks at all; "none" never.
        level: 1 to 19.

    Raises:
        UsageError: unknown mode or level.
    """

    def __init__(self, mode: CompressionMode = "auto", level: int = DEFAULT_LEVEL) -> None:
        if mode not in ("auto", "zstd", "none"):
            raise UsageError(
                f"There is no compression {mode!r}.", hint="Choose one of auto, zstd, none."
            )
        if not 1 <= level <= MAX_LEVEL:
            raise UsageError(f"Compression level {level} is not between 1 and {MAX_LEVEL}.")
        self.mode: Final = mode
        self.level: Final = level

    def compress(self, plain: Buffer) -> tuple[Codec, Buffer]:
        """The bytes to seal and how they were made; `plain` itself when compressing does not pay.

        The result depends on the linked zstd version: another one may choose other, equally
        valid bytes.
        """
        if self.mode == "none":
            return Codec.RAW, plain
        # One per call: a compressor must not be shared by threads, and making one costs little.
        zstd = zstandard.ZstdCompressor(level=self.level)
        size = len(plain)
        limit = size - 1
        if self.mode == "auto":
            limit = min(limit, int(size * _WORTH_IT))
            if size > _SAMPLE_BYTES:
                sample = zstd.compress(memoryview(plain)[:_SAMPLE_BYTES])
                if len(sample) > _SAMPLE_BYTES * _WORTH_IT:
                    return Codec.RAW, plain
        packed = zstd.compress(plain)
        return (Codec.ZSTD, packed) if len(packed) <= limit else (Codec.RAW, plain)


def decompress(packed: Buffer, plain_size: int) -> bytes:
    """Inflate one zstd frame to exactly `plain_size` bytes, allocating no more than that.

    The caller has bounded `plain_size`.

    Raises:
        FormatError: not one whole zstd frame, or one that announces another size, a window above
            8 MiB or a dictionary.
    """
    # The magic is checked here because zstandard also reports sizes for skippable frames.
    if bytes(packed[:4]) != _MAGIC:
        raise FormatError("The data is not a zstd frame.")
    try:
        frame = zstandard.get_frame_parameters(packed)
        if frame.content_size != plain_size:
            raise FormatError(
                f"A zstd frame announces {frame.content_size} bytes where {plain_size} belong."
            )
        if frame.dict_id or frame.window_size > MAX_STORED_BYTES:
            raise FormatError("A zstd frame demands a dictionary or too large a window.")
        zstd = zstandard.ZstdDecompressor()
        plain: bytes = zstd.decompress(packed, max_output_size=plain_size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"The zstd frame is broken ({error}).") from error
    if len(plain) != plain_size:
        raise FormatError(f"A zstd frame holds {len(plain)} bytes where {plain_size} belong.")
    return plain
