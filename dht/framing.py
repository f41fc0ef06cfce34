"""Frames of both protocols: an unsigned varint length (LEB128), then that many bytes."""

from __future__ import annotations

from ..errors import FormatError, PeerError
from .host import Stream

_MAX_LENGTH_BYTES = 5
_READ_BYTES = 64 * 1024


def encode_length(length: int) -> bytes:
    out = bytearray()
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def encode_frame(payload: bytes) -> bytes:
    return encode_length(len(payload)) + payload


def decode_length(data: bytes | bytearray) -> tuple[int, int] | None:
    """(length, bytes it took) at the start of `data`, or None when more bytes are needed.

    Raises:
        FormatError: the varint is longer than any frame needs.
    """
    length = 0
    for index, byte in enumerate(data[:_MAX_LENGTH_BYTES]):
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return length, index + 1
    if len(data) >= _MAX_LENGTH_BYTES:
        raise FormatError("A frame length is not a sane varint.")
    return None


class FrameReader:
    """Frames out of a stream. Buffers no more than one frame and one read beyond it."""

    def __init__(self, stream: Stream, max_frame: int) -> None:
        self._stream = stream
        self._max_frame = max_frame
        self._buffer = bytearray()

    @property
    def dirty(self) -> bool:
        """Whether bytes have arrived that nobody asked for yet."""
        return bool(self._buffer)

    async def wait(self) -> bool:
        """Wait until a next frame begins; False at the end of the stream."""
        return bool(self._buffer) or await self._fill()

    async def read(self) -> bytes:
        """The next frame.

        Raises:
            FormatError: it announces more than the allowed size.
            PeerError: the stream ended or broke inside it.
        """
        while (head := decode_length(self._buffer)) is None:
            await self._more()
        length, start = head
        if length > self._max_frame:
            raise FormatError(f"A frame of {length} bytes; at most {self._max_frame} are allowed.")
        while len(self._buffer) < start + length:
            await self._more()
        frame = bytes(memoryview(self._buffer)[start : start + length])
        del self._buffer[: start + length]
        return frame

    async def _more(self) -> None:
        if not await self._fill():
            raise PeerError(f"{self._stream.peer.short} ended the stream inside a message.")

    async def _fill(self) -> bool:
        data = await self._stream.read_some(_READ_BYTES)
        self._buffer += data
        return bool(data)
