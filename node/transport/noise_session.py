"""The transport phase of `/noise`: frames of at most 65,535 bytes, each sealed on its own.

Source: libp2p specifications, noise ("Wire Format"). A frame is its length (2 bytes, big-endian)
and a Noise message of that length: ciphertext, and a tag of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import FormatError, PeerError
from .noise_xx import MAX_MESSAGE, TAG_BYTES, CipherState

LENGTH_BYTES: Final = 2
MAX_FRAME: Final = LENGTH_BYTES + MAX_MESSAGE
"""A receive buffer must have room for one whole frame: 65,537 bytes."""
MAX_PLAINTEXT: Final = MAX_MESSAGE - TAG_BYTES


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

        Frames are full but for the last one, whatever the pieces' sizes, and lie end to end in as
        few buffers as possible (at present one; none for no bytes). The buffers are the caller's.

        Raises:
            PeerError: the session is dead.
        """
        self._check_alive()
        plain = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces)).cast("B")
        if not plain:
            return []
        count = -(-len(plain) // MAX_PLAINTEXT)
        out = bytearray(len(plain) + count * (LENGTH_BYTES + TAG_BYTES))
        # Into one buffer rather than to a `bytes` a frame: blocks just below the size for which the
        # allocator maps memory are given back and faulted in again, at up to half the speed.
        view = memoryview(out)
        position = 0
        for start in range(0, len(plain), MAX_PLAINTEXT):
            piece = plain[start : start + MAX_PLAINTEXT]
            body = position + LENGTH_BYTES
            position = body + len(piece) + TAG_BYTES
            view[body - LENGTH_BYTES : body] = (position - body).to_bytes(LENGTH_BYTES, "big")
            try:
                self._sending.encrypt_into(piece, view[body:position])
            except FormatError as error:
                raise self._die(error.message) from error
        return [out]

    def open(self, received: Buffer) -> tuple[list[bytes], int]:
        """Open all whole frames at the start of `received`.

        Returns the plaintexts in order (never an empty one) and the number of bytes consumed. What
        is left is the beginning of a frame: pass it again, with what follows it.

        Raises:
            PeerError: a frame was forged, changed, lost, repeated or out of order.
        """
        self._check_alive()
        if not self._rest:
            return self._open_frames(memoryview(received).cast("B"))
        kept = len(self._rest)
        joined = b"".join((self._rest, received))
        plaintexts, used = self._open_frames(memoryview(joined))
        if used < kept:  # not even one frame: it is shorter than that, so is what we keep
            self._rest = joined[used:]
            return plaintexts, len(joined) - kept
        self._rest = b""
        return plaintexts, used - kept

    def _open_frames(self, received: memoryview) -> tuple[list[bytes], int]:
        plaintexts = []
        position, end = 0, len(received)
        decrypt = self._receiving.decrypt
        try:
            while end - position >= LENGTH_BYTES:
                size = received[position] << 8 | received[position + 1]
                if size < TAG_BYTES:
                    raise FormatError(f"a frame of {size} bytes is too short")
                body = position + LENGTH_BYTES
                if end - body < size:
                    break
                plaintext = decrypt(received[body : body + size])
                position = body + size
                if plaintext:
                    plaintexts.append(plaintext)
        except FormatError as error:
            raise self._die(error.message) from error
        return plaintexts, position

    def _check_alive(self) -> None:
        if self._dead:
            raise self._die(self._dead)

    def _die(self, why: str) -> PeerError:
        self._dead = why
        self._rest = b""
        return PeerError(f"the encrypted connection broke ({why})")
