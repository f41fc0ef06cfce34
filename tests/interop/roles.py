"""What either side does in a check, and serves, over any `Stream`; js/roles.mjs is the same again.

A role takes and returns what JSON can carry, so that it can be played in another process. It raises
when what it sees is wrong; what may rightly differ it returns, and the check judges.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio
from meshnode.dht.host import Stream
from meshnode.errors import PeerError

ECHO = "/test/echo/1"
DIGEST = "/test/digest/1"
ENDS_FIRST = "/test/ends-first/1"
HOLD = "/test/hold/1"
RESETS = "/test/resets/1"
IGNORES = "/test/ignores/1"
UNKNOWN = "/test/unknown/1"

TOKEN_SIZE = 8
READ_SIZE = 256 * 1024
NO_PROGRESS = 2.0
"""Seconds: py-libp2p leaves half a frame, and a broken connection, when a write is cancelled that
waits for the socket and not for credit; a busy machine must not look like a full window."""

Open = Callable[[str], Awaitable[Stream]]


class Roles:
    """The roles of one side; `endings` is what its HOLD and ENDS_FIRST streams came to."""

    def __init__(self) -> None:
        self.endings: dict[str, str] = {}
        self._changed = trio.Event()
        self.handlers: Mapping[str, Callable[[Stream], Awaitable[None]]] = {
            ECHO: self._serve_echo,
            DIGEST: self._serve_digest,
            ENDS_FIRST: self._serve_ends_first,
            HOLD: self._serve_hold,
            RESETS: self._serve_resets,
            IGNORES: self._serve_ignores,
        }

    async def play(self, role: str, open_stream: Open, arguments: Mapping[str, object]) -> object:
        return await getattr(self, role)(open_stream, **arguments)

    # --- served ---------------------------------------------------------------------------------

    async def _serve_echo(self, stream: Stream) -> None:
        while data := await stream.read_some(READ_SIZE):
            await stream.write(data)

    async def _serve_digest(self, stream: Stream) -> None:
        await stream.write(await _summary(stream))

    async def _serve_ends_first(self, stream: Stream) -> None:
        await stream.write(b"nothing more")
        await stream.close()
        received = await _gather(stream)
        self._record(received[:TOKEN_SIZE], f"end after {len(received)}")

    async def _serve_hold(self, stream: Stream) -> None:
        token = await _gather(stream, TOKEN_SIZE)
        self._record(token, await _ending(stream, answer=b"."))

    async def _serve_resets(self, stream: Stream) -> None:
        await stream.read_some()
        await stream.reset()

    async def _serve_ignores(self, stream: Stream) -> None:
        await trio.sleep_forever()

    def _record(self, token: bytes, ending: str) -> None:
        self.endings[token.hex()] = ending
        self._changed.set()
        self._changed = trio.Event()

    # --- played by whoever opens the streams ----------------------------------------------------

    async def echo(
        self, open_stream: Open, *, streams: int, size: int, pieces: Sequence[int]
    ) -> int:
        """`size` bytes there and back on each of `streams` streams at once, in writes of `pieces`
        in turn; bytes there in total."""

        async def one() -> None:
            stream = await open_stream(ECHO)
            sent = hashlib.sha256()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, stream, size, pieces, sent)
                received = await _summary(stream)
            _expect(received, _answer(size, sent))

        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(one)
        return streams * size

    async def digest(self, open_stream: Open, *, size: int, pieces: Sequence[int]) -> int:
        """All the way there, our end; only then the peer's answer, and its end."""
        stream = await open_stream(DIGEST)
        sent = hashlib.sha256()
        await _send(stream, size, pieces, sent)
        _expect(await _gather(stream), _answer(size, sent))
        return size

    async def short_streams(self, open_stream: Open, *, count: int, at_once: int) -> int:
        """`count` streams, each opened, used once and closed by both."""
        left = list(range(count))

        async def work() -> None:
            while left:
                message = b"stream %d" % left.pop()
                stream = await open_stream(ECHO)
                await stream.write(message)
                await stream.close()
                _expect(await _gather(stream), message)

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
        return count

    async def writes_after_their_end(self, open_stream: Open, *, token: str, size: int) -> str:
        """Hear the peer out; only then write. Returns what was heard."""
        stream = await open_stream(ENDS_FIRST)
        heard = await _gather(stream)
        await stream.write(bytes.fromhex(token) + bytes(size - TOKEN_SIZE))
        await stream.close()
        return heard.decode()

    async def resets(self, open_stream: Open, *, token: str) -> bool:
        """Reset a stream that the peer is reading."""
        stream = await open_stream(HOLD)
        await stream.write(bytes.fromhex(token))
        await stream.read_some()
        await stream.reset()
        return True

    async def ends(self, open_stream: Open, *, token: str) -> str:
        """Close a stream that the peer is reading; how the peer's half ended."""
        stream = await open_stream(HOLD)
        await stream.write(bytes.fromhex(token))
        await stream.read_some()
        await stream.close()
        return await _ending(stream)

    async def reads_until_reset(self, open_stream: Open) -> str:
        """How a stream ends that the peer resets while we read."""
        stream = await open_stream(RESETS)
        return await _ending(stream, answer=b".")

    async def writes_until_reset(self, open_stream: Open) -> str:
        """How a stream ends that the peer resets while we write."""
        stream = await open_stream(RESETS)
        try:
            for _ in range(1024):
                await stream.write(bytes(65536))
        except PeerError as error:
            return _named(error)
        return "all was taken"

    async def writes_to_nobody(self, open_stream: Open) -> int:
        """Write to a stream nobody reads until nothing more is taken; use another; reset it.

        Returns how many bytes were taken.
        """
        stream = await open_stream(IGNORES)
        taken = 0
        while True:
            with trio.move_on_after(NO_PROGRESS) as stuck:
                await stream.write(bytes(65536))
            if stuck.cancelled_caught:
                break
            taken += 65536
        await self.echo(open_stream, streams=1, size=300_000, pieces=[65536])
        await stream.reset()
        return taken

    async def asks_for_unknown(self, open_stream: Open) -> str:
        """Ask for a stream of a protocol that the peer has never heard of."""
        try:
            await open_stream(UNKNOWN)
        except PeerError as error:
            return "refused" if "does not speak" in error.message else error.message
        return "accepted"

    async def ending_of(self, _: Open, *, token: str) -> str:
        """What the stream that bore `token` came to on this side; waits for it."""
        while token not in self.endings:
            await self._changed.wait()
        return self.endings[token]


async def _send(stream: Stream, size: int, pieces: Sequence[int], hashed: hashlib._Hash) -> None:
    data = memoryview(random.randbytes(max(pieces) + 4096))
    done = index = 0
    while done < size:
        start = index % 4096  # so that pieces which change places are noticed
        piece = data[start : start + min(pieces[index % len(pieces)], size - done)]
        hashed.update(piece)
        await stream.write(piece)
        done += len(piece)
        index += 1
    await stream.close()


async def _summary(stream: Stream) -> bytes:
    """Length and SHA-256 of all there is to read."""
    hashed, size = hashlib.sha256(), 0
    while data := await stream.read_some(READ_SIZE):
        hashed.update(data)
        size += len(data)
    return _answer(size, hashed)


def _answer(size: int, hashed: hashlib._Hash) -> bytes:
    return size.to_bytes(8, "big") + hashed.digest()


async def _gather(stream: Stream, size: int | None = None) -> bytes:
    got = bytearray()
    while size is None or len(got) < size:
        if not (data := await stream.read_some()):
            break
        got += data
    return bytes(got)


async def _ending(stream: Stream, *, answer: bytes = b"") -> str:
    """How it ended, reading on to there: `end`, `reset`, or another error's text.

    Writes `answer` first: the peer may have it, and have reset the stream, before that returns.
    """
    try:
        if answer:
            await stream.write(answer)
        while await stream.read_some():
            pass
    except PeerError as error:
        return _named(error)
    return "end"


def _named(error: PeerError) -> str:
    return "reset" if "reset by the peer" in error.message else error.message


def _expect(received: bytes, sent: bytes) -> None:
    if received != sent:
        raise AssertionError(f"sent {sent.hex()}, received {received.hex()}")
