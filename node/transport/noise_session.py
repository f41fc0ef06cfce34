"""The transport phase of `/noise`: frames of at most 65,535 bytes, each sealed on its own.

Source: libp2p specifications, noise ("Wire Format"). A frame is its length (2 bytes, big-endian)
and a Noise message of that length: ciphertext, and a tag of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import FormatError, PeerError
from .noise_xx import MAX_MESSAGE, TAG_BYTES, CipherState

LENGTH_BYTES: Final = 2
MAX_FRAME: Final = LENGTH_BYTES + MAX_MESSAGE
"""A receive buffer must have room for one whole frame: 65,537 bytes."""
MAX_PLAINTEXT: Final = MAX_MESSAGE - TAG_BYTES
_ALONE: Final = 16 * 1024
"""A piece from this size on begins a frame: an additional frame costs less than copying it, and
whoever opens it has the piece without a copy."""


class Reader(Protocol):
    """Takes what frames carried, in their order."""

    def room(self, size: int) -> memoryview | None:
        """Where the next `size` bytes belong, when that is known: they are decrypted into it."""
        ...

    def filled(self, size: int) -> None:
        """They are there."""
        ...

    def take(self, plaintext: bytes) -> None:
        """Bytes (never none) for which there was no `room`."""
        ...


class _Pieces(list[bytes]):
    """A `Reader` that keeps everything."""

    def room(self, _: int) -> None:
        return None

    def filled(self, _: int) -> None:
        raise AssertionError("there was no room")

    take = list.append


class NoiseSession:
    """Seals what goes out and opens what comes in, bytes to bytes.

    One task may seal while another opens. Any PeerError from here ends the session: nothing can be
    sealed or opened after it, and the connection must be closed.

    What has arrived with the last message of the handshake is inside already: call `open(b"")`
    once before the first wait for the socket.
    """

    __slots__ = ("_dead", "_receiving", "_rest", "_sending", "peer")

    def __init__(
        self, peer: PeerId, sending: CipherState, receiving: CipherState, rest: bytes = b""
    ) -> None:
        self.peer = peer
        self._sending = sending
        self._receiving = receiving
        self._rest = rest
        self._dead = ""

    def seal(self, pieces: Sequence[Buffer]) -> list[bytearray]:
        """Frames that carry `pieces`, one after the other, for one `sendmsg`.

        They lie end to end in as few buffers as possible (at present one; none for no bytes). The
        buffers are the caller's.

        Raises:
            PeerError: the session is dead.
        """
        plains = _frames_of(pieces)
        out = bytearray(_sealed_size(plains))
        self._seal_into(plains, memoryview(out))
        return [out] if out else []

    def seal_into(self, pieces: Sequence[Buffer], scratch: memoryview) -> memoryview:
        """As `seal`, without memory of its own: the result lies in `scratch` unless it is too
        small, and is to be sent or copied before the next call.

        Fresh memory for every write would cost as much as a third of the encryption: the allocator
        gives large blocks back, and the system clears them again page by page.
        """
        if len(pieces) == 1 and 0 < len(pieces[0]) <= MAX_PLAINTEXT:
            plains = pieces
        else:
            plains = _frames_of(pieces)
        size = _sealed_size(plains)
        out = scratch[:size] if size <= len(scratch) else memoryview(bytearray(size))
        self._seal_into(plains, out)
        return out

    def _seal_into(self, plains: Sequence[Buffer], out: memoryview) -> None:
        self._check_alive()
        encrypt_into = self._sending.encrypt_into
        position = 0
        try:
            for plain in plains:
                size = len(plain) + TAG_BYTES
                body = position + LENGTH_BYTES
                position = body + size
                out[body - LENGTH_BYTES : body] = size.to_bytes(LENGTH_BYTES, "big")
                encrypt_into(plain, out[body:position])
        except FormatError as error:
            raise self._die(error.message) from error

    def open(self, received: Buffer) -> tuple[list[bytes], int]:
        """Open all whole frames at the start of `received`.

        Returns the plaintexts in order (never an empty one) and the number of bytes consumed. What
        is left is the beginning of a frame: pass it again, with what follows it.

        Raises:
            PeerError: a frame was forged, changed, lost, repeated or out of order.
        """
        plaintexts = _Pieces()
        used = self.open_to(plaintexts, received)
        return plaintexts, used

    def open_to(self, reader: Reader, received: Buffer) -> int:
        """As `open`, handed to `reader` frame by frame; whatever that raises goes through.

        Returns:
            The number of bytes consumed.
        """
        self._check_alive()
        if not self._rest:
            return self._open_frames(reader, memoryview(received).cast("B"))
        kept = len(self._rest)
        joined = b"".join((self._rest, received))
        used = self._open_frames(reader, memoryview(joined))
        if used < kept:  # not even one frame: it is shorter than that, so is what we keep
            self._rest = joined[used:]
            return len(joined) - kept
        self._rest = b""
        return used - kept

    def _open_frames(self, reader: Reader, received: memoryview) -> int:
        position, end = 0, len(received)
        cipher = self._receiving
        while end - position >= LENGTH_BYTES:
            size = received[position] << 8 | received[position + 1]
            if size < TAG_BYTES:
                raise self._die(f"a frame of {size} bytes is too short")
            body = position + LENGTH_BYTES
            if end - body < size:
                break
            position = body + size
            room = reader.room(size - TAG_BYTES)
            try:
                if room is None:
                    plaintext = cipher.decrypt(received[body:position])
                else:
                    cipher.decrypt_into(received[body:position], room)
            except FormatError as error:
                raise self._die(error.message) from error
            if room is not None:
                reader.filled(size - TAG_BYTES)
            elif plaintext:
                reader.take(plaintext)
        return position

    def _check_alive(self) -> None:
        if self._dead:
            raise self._die(self._dead)

    def _die(self, why: str) -> PeerError:
        self._dead = why
        self._rest = b""
        return PeerError(f"the encrypted connection broke ({why})")


def _frames_of(pieces: Sequence[Buffer]) -> list[Buffer]:
    """What each frame is to carry: small pieces together, large ones by themselves."""
    plains: list[Buffer] = []
    small: list[Buffer] = []
    gathered = 0
    for piece in pieces:
        size = len(piece)
        if size < _ALONE and gathered + size <= MAX_PLAINTEXT:
            if size:
                small.append(piece)
                gathered += size
            continue
        if small:
            plains.append(small[0] if len(small) == 1 else b"".join(small))
            small, gathered = [], 0
        if size <= MAX_PLAINTEXT:
            plains.append(piece)
        else:
            view = memoryview(piece).cast("B")
            step = -(-size // -(-size // MAX_PLAINTEXT))
            plains += [view[start : start + step] for start in range(0, size, step)]
    if small:
        plains.append(small[0] if len(small) == 1 else b"".join(small))
    return plains


def _sealed_size(plains: Sequence[Buffer]) -> int:
    return sum(map(len, plains)) + len(plains) * (LENGTH_BYTES + TAG_BYTES)
