"""The client side of the API: HTTP over the node's Unix socket.

Waiting is bounded by silence, not by length: the node sends a heartbeat every few seconds while a
transfer runs, so a node that says nothing for `SILENCE_SECS` is stuck, however large the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from ..errors import ApiUnavailableError, DeadlineError, MeshError, TransferError
from ..node.api.error_json import error_from_json
from .client import ByteSource, JsonObject, NobodyThereError, OnEvent

CONNECT_SECS = 2.0
ANSWER_SECS = 4.0
"""For questions a node answers from memory: longer than that, and it is stopped or stuck."""
SILENCE_SECS = 30.0
STREAM_SILENCE_SECS = 120.0
"""For bytes (cat) and uploads, where there is no room for a heartbeat."""
_CANCEL_SECS = 5.0
_PIECE_BYTES = 1 << 18


class HttpClient:
    """Talks to the node that listens on `socket_path`.

    Args:
        find_process: tells the process id of that node, for messages.
    """

    _READS = frozenset({"status", "peers", "catalogue", "config"})
    _QUICK = frozenset({"status", "peers", "config", "stop"})

    def __init__(
        self, socket_path: Path, find_process: Callable[[], int | None] = lambda: None
    ) -> None:
        self._path = socket_path
        self._find_process = find_process

    def check_listening(self) -> None:
        """See that somebody accepts connections.

        Raises:
            NobodyThereError: no socket, or one that a dead process left behind.
            MeshError: something is there that cannot be talked to.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_SECS)
            try:
                probe.connect(os.fsencode(self._path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise NobodyThereError(
                    f"No node is running here: nobody answers on {self._path}.",
                    hint="Start one with `meshnode start --detach`.",
                ) from error
            except TimeoutError as error:
                raise self._stuck(CONNECT_SECS) from error
            except OSError as error:
                raise ApiUnavailableError(
                    f"The node's socket {self._path} cannot be used: {error.strerror or error}.",
                    hint="Run the command as the user who started the node.",
                ) from error

    def call(self, verb: str, request: JsonObject, on_event: OnEvent | None = None) -> JsonObject:
        silence = ANSWER_SECS if verb in self._QUICK else SILENCE_SECS
        if verb in self._READS:
            return self._read(verb, silence)
        body = json.dumps(request).encode("ascii")
        with self._request("POST", verb, silence, content=body) as answer:
            return _last_line(answer, on_event)

    def put_stream(self, request: JsonObject, source: ByteSource, on_event: OnEvent) -> JsonObject:
        def pieces() -> Iterator[bytes]:
            sent = 0
            while piece := source.read(_PIECE_BYTES):
                yield piece
                sent += len(piece)
                on_event({"type": "progress", "bytes_done": sent})

        verb = f"put-stream?{_query(request)}"
        with self._request("POST", verb, STREAM_SILENCE_SECS, content=pieces()) as answer:
            return _last_line(answer, lambda event: None)

    def cat(self, request: JsonObject, write: Callable[[bytes], object]) -> int:
        """When the node breaks off, the rest is asked for: that gives it, or the reason why not."""
        offset, length = request.get("offset"), request.get("length")
        start = offset if isinstance(offset, int) else 0
        done, whole = 0, False
        while not whole:
            rest = dict(request, offset=start + done)
            if isinstance(length, int):
                rest["length"] = length - done
            copied, whole = self._copy(rest, write)
            if not (copied or whole):
                raise TransferError(
                    f"The node broke off after {done} bytes; what was written is not whole.",
                    hint="The node's log says why. Try again; `meshnode get` tries harder.",
                )
            done += copied
        return done

    def _copy(self, request: JsonObject, write: Callable[[bytes], object]) -> tuple[int, bool]:
        """How many bytes came, and whether they were all of them."""
        done = 0
        with self._request("GET", f"cat?{_query(request)}", STREAM_SILENCE_SECS) as answer:
            if answer.status_code != 200:
                raise _error_of(answer.read())
            try:
                for piece in answer.iter_raw():
                    write(piece)
                    done += len(piece)
            except httpx.RemoteProtocolError:
                return done, False
        return done, True

    def peer_names(self) -> dict[str, str]:
        try:
            peers = self.call("peers", {}).get("peers")
        except MeshError:
            return {}  # names are nice to have
        return {
            str(peer.get("peer_id")): str(peer.get("name") or "")
            for peer in (peers if isinstance(peers, list) else ())
        }

    def _read(self, verb: str, silence: float) -> JsonObject:
        with self._request("GET", verb, silence) as answer:
            body = answer.read()
            if answer.status_code != 200:
                raise _error_of(body)
        return _object(body)

    @contextlib.contextmanager
    def _request(
        self, method: str, verb: str, silence: float, **body: Any
    ) -> Iterator[httpx.Response]:
        """One call; on Ctrl-C it returns only when the node has ended the work too."""
        line = _Line()
        timeout = httpx.Timeout(silence, connect=CONNECT_SECS)
        # No TLS on a Unix socket: to load the certificates for it takes longer than most calls.
        transport = httpx.HTTPTransport(uds=str(self._path), verify=False)
        try:
            with (
                httpx.Client(transport=transport, timeout=timeout) as client,
                client.stream(
                    method,
                    f"http://meshnode/v1/{verb}",
                    extensions={"trace": line.trace},
                    **body,
                ) as answer,
            ):
                yield answer
        except KeyboardInterrupt:
            line.cancel()
            raise
        except httpx.ConnectError as error:
            self.check_listening()
            raise ApiUnavailableError(f"The node on {self._path} hung up: {error}.") from error
        except httpx.TimeoutException as error:
            raise self._stuck(silence) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ApiUnavailableError(
                f"The node ended the connection within its answer ({reason}).",
                hint="It may have stopped or crashed: see `meshnode status` and its log.",
            ) from error
        finally:
            line.close()

    def _stuck(self, seconds: float) -> DeadlineError:
        pid = self._find_process()
        node = f"The node here (process {pid})" if pid else f"The node on {self._path}"
        return DeadlineError(
            f"{node} has not answered for {seconds:g} s.",
            hint="It may be overloaded or stopped (Ctrl-Z, debugger): see its log; `meshnode stop` "
            "ends it even so.",
        )


class _Line:
    """A hold of our own on the connection's socket.

    The node closes a connection once the work behind it has ended. To know that it has, after
    Ctrl-C, the connection must outlive the HTTP client, which drops it at once.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def trace(self, event: str, details: Mapping[str, Any]) -> None:
        """Told by httpcore (its "trace" extension) about each step of the request."""
        if event == "connection.connect_unix_socket.complete":
            found = details["return_value"].get_extra_info("socket")
            self._socket = found.dup()

    def cancel(self) -> None:
        """Tell the node that nobody listens, and wait until it has put everything away."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.settimeout(_CANCEL_SECS)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(_PIECE_BYTES):
                pass

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _last_line(answer: httpx.Response, on_event: OnEvent | None) -> JsonObject:
    """Tell the events; the result.

    Raises:
        MeshError: the answer's error.
    """
    for text in answer.iter_lines():
        line = _object(text)
        event = line.get("event")
        if isinstance(event, dict):
            if on_event is not None and event.get("type") != "heartbeat":
                on_event(event)
        elif "error" in line:
            raise error_from_json(line["error"])
        elif isinstance(result := line.get("result"), dict):
            return result
    raise ApiUnavailableError(
        "The node ended its answer without a result.",
        hint="It may have stopped or crashed: see `meshnode status` and its log.",
    )


def _error_of(body: bytes) -> MeshError:
    return error_from_json(_object(body).get("error"))


def _object(text: str | bytes) -> JsonObject:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ApiUnavailableError(
            "What answers on the node's socket does not speak meshnode's API.",
            hint="Client and node may be of different versions; compare `meshnode version`.",
        )
    return found


def _query(request: JsonObject) -> str:
    """As a query string; file names are percent-encoded byte for byte."""
    words = {True: "true", False: "false"}
    texts = {
        name: words[value] if isinstance(value, bool) else str(value)
        for name, value in request.items()
        if value is not None
    }
    return urlencode(texts, errors="surrogateescape", quote_via=quote)
