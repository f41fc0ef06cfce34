"""The client side of the API: HTTP over the node's Unix socket.

Waiting is bounded by silence, not by length: the node sends a heartbeat every few seconds while a
transfer runs, so a node that says nothing for `SILENCE_SECS` is stuck, however large the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

from ..errors import ApiUnavailableError, DeadlineError, MeshError, TransferError
from ..node.api.error_json import error_from_json
from .client import ByteSource, JsonObject, NobodyThereError, OnEvent
from .http_line import CutAnswerError, HttpLine, LineError, SilentLineError

CONNECT_SECS = 2.0
ANSWER_SECS = 4.0
"""For questions a node answers from memory: longer than that, and it is stopped or stuck."""
SILENCE_SECS = 30.0
STREAM_SILENCE_SECS = 120.0
"""For bytes (cat) and uploads, where there is no room for a heartbeat."""
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
        self._connected().close()

    def call(self, verb: str, request: JsonObject, on_event: OnEvent | None = None) -> JsonObject:
        silence = ANSWER_SECS if verb in self._QUICK else SILENCE_SECS
        if verb in self._READS:
            return self._read(verb, silence)
        body = json.dumps(request).encode("ascii")
        with self._request("POST", verb, silence, body) as (_, answer):
            return _last_line(answer, on_event)

    def put_stream(self, request: JsonObject, source: ByteSource, on_event: OnEvent) -> JsonObject:
        def pieces() -> Iterator[bytes]:
            sent = 0
            while piece := source.read(_PIECE_BYTES):
                yield piece
                sent += len(piece)
                on_event({"type": "progress", "bytes_done": sent})

        verb = f"put-stream?{_query(request)}"
        with self._request("POST", verb, STREAM_SILENCE_SECS, pieces()) as (_, answer):
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
        verb = f"cat?{_query(request)}"
        with self._request("GET", verb, STREAM_SILENCE_SECS) as (status, answer):
            if status != 200:
                raise _error_of(answer.read())
            try:
                for piece in answer.pieces():
                    write(piece)
                    done += len(piece)
            except CutAnswerError:
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
        with self._request("GET", verb, silence) as (status, answer):
            body = answer.read()
            if status != 200:
                raise _error_of(body)
        return _object(body)

    @contextlib.contextmanager
    def _request(
        self, method: str, verb: str, silence: float, body: bytes | Iterable[bytes] | None = None
    ) -> Iterator[tuple[int, HttpLine]]:
        """One call: the answer's status, and where the rest of it comes from.

        On Ctrl-C it returns only when the node has ended the work too.
        """
        line = HttpLine(self._connected(), silence)
        try:
            yield line.ask(method, f"/v1/{verb}", body), line
        except KeyboardInterrupt:
            line.cancel()
            raise
        except SilentLineError as error:
            raise self._stuck(silence) from error
        except LineError as error:
            reason = str(error) or type(error).__name__
            raise ApiUnavailableError(
                f"The node ended the connection within its answer ({reason}).",
                hint="It may have stopped or crashed: see `meshnode status` and its log.",
            ) from error
        finally:
            line.close()

    def _connected(self) -> socket.socket:
        """A connection to the node. Raises like `check_listening`."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(CONNECT_SECS)
        try:
            line.connect(os.fsencode(self._path))
        except OSError as error:
            line.close()
            raise self._not_connected(error) from error
        return line

    def _not_connected(self, error: OSError) -> MeshError:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return NobodyThereError(
                f"No node is running here: nobody answers on {self._path}.",
                hint="Start one with `meshnode start --detach`.",
            )
        if isinstance(error, TimeoutError):
            return self._stuck(CONNECT_SECS)
        return ApiUnavailableError(
            f"The node's socket {self._path} cannot be used: {error.strerror or error}.",
            hint="Run the command as the user who started the node.",
        )

    def _stuck(self, seconds: float) -> DeadlineError:
        pid = self._find_process()
        node = f"The node here (process {pid})" if pid else f"The node on {self._path}"
        return DeadlineError(
            f"{node} has not answered for {seconds:g} s.",
            hint="It may be overloaded or stopped (Ctrl-Z, debugger): see its log; `meshnode stop` "
            "ends it even so.",
        )


def _last_line(answer: HttpLine, on_event: OnEvent | None) -> JsonObject:
    """Tell the events; the result.

    Raises:
        MeshError: the answer's error.
    """
    for text in answer.lines():
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
