"""One request and its answer over a Unix socket: h11 speaks HTTP/1.1, this moves the bytes.

Clients with a pool of connections, TLS and an asynchronous side take ten times as long to load as
most calls to the node take.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator

import h11

_CANCEL_SECS = 5.0
_READ_BYTES = 1 << 18


class LineError(Exception):
    """The connection failed; the text says how."""


class SilentLineError(LineError):
    """Nothing moved for as long as one waits."""


class CutAnswerError(LineError):
    """The node ended the connection before its answer was whole, or what came is not HTTP."""


class HttpLine:
    """A connection for one request.

    Args:
        connected: the socket; closed with this.
        silence: seconds that one step of sending or receiving may take.
    """

    def __init__(self, connected: socket.socket, silence: float) -> None:
        self._socket = connected
        self._socket.settimeout(silence)
        self._http = h11.Connection(h11.CLIENT)

    def ask(self, method: str, target: str, body: bytes | Iterable[bytes] | None = None) -> int:
        """Send the request, its body as it comes where it is not bytes; the status of the answer.

        Raises:
            LineError: the connection failed.
        """
        with contextlib.suppress(_UnsentError):  # then the answer, which came early, says why
            self._send_request(method, target, body)
        while not isinstance(event := self._next_event(), h11.Response):
            pass
        return event.status_code

    def _send_request(self, method: str, target: str, body: bytes | Iterable[bytes] | None) -> None:
        headers = [("Host", "meshnode")]
        if isinstance(body, bytes):
            headers.append(("Content-Length", str(len(body))))
            body = [body]
        elif body is not None:
            headers.append(("Transfer-Encoding", "chunked"))
        self._send(h11.Request(method=method, target=target, headers=headers))
        for piece in body or ():
            self._send(h11.Data(data=piece))
        self._send(h11.EndOfMessage())

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the answer, as they come.

        Raises:
            CutAnswerError: they end before their end.
            LineError: the connection failed in another way.
        """
        while isinstance(event := self._next_event(), h11.Data):
            yield bytes(event.data)

    def lines(self) -> Iterator[bytes]:
        """The lines of the answer, as they come. Raises like `pieces`."""
        begun = bytearray()
        for piece in self.pieces():
            begun += piece
            if b"\n" in piece:
                *whole, rest = bytes(begun).split(b"\n")
                yield from whole
                begun = bytearray(rest)
        if begun:
            yield bytes(begun)

    def read(self) -> bytes:
        """The whole answer. Raises like `pieces`."""
        return b"".join(self.pieces())

    def cancel(self) -> None:
        """Tell the node that nobody listens, and wait until it has put everything away.

        It closes a connection once the work behind it has ended.
        """
        with contextlib.suppress(OSError):
            self._socket.settimeout(_CANCEL_SECS)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(_READ_BYTES):
                pass

    def close(self) -> None:
        self._socket.close()

    def _send(self, event: h11.Event) -> None:
        left = memoryview(self._http.send(event) or b"")
        while left:
            try:
                sent = self._socket.send(left)
            except TimeoutError as error:
                raise SilentLineError(str(error)) from error
            except OSError as error:
                raise _UnsentError(str(error)) from error
            left = left[sent:]

    def _next_event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = self._socket.recv(_READ_BYTES)
                if not data and self._http.their_state is h11.SEND_RESPONSE:
                    raise CutAnswerError("Server disconnected without sending a response.")
                self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise CutAnswerError(str(error)) from error
        except TimeoutError as error:
            raise SilentLineError(str(error)) from error
        except OSError as error:
            raise LineError(str(error)) from error
        return event


class _UnsentError(LineError):
    """The other side takes no more of the request."""
