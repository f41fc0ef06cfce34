"""One call to the API: its body in, its answer out, and the end of its work when nobody listens.

ASGI specification 3.0, HTTP. Every answer keeps a task that reads what the client still sends: it
notices the client's leaving (which cancels the work), and it keeps hypercorn's inbound queue from
filling, without which hypercorn could not finish an answer given before the body was read.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing

import structlog
import trio
from starlette.types import Receive, Scope, Send

from ...errors import ApiUnavailableError, MeshError, UsageError
from .error_json import as_mesh_error, error_to_json, internal_error
from .event_feed import Event, EventFeed

log = structlog.get_logger(__name__)

MAX_JSON_BYTES = 1 << 20
HEARTBEAT_SECS = 5.0
NDJSON = "application/x-ndjson"
_BODY_TIMEOUT_SECS = 30.0

JsonObject = dict[str, object]
Emit = Callable[[Event], None]
Result = Awaitable[JsonObject]
Work = Callable[[Emit], Result]
OpenBytes = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]


class Calls:
    """The calls that are being answered, so that all of them can be ended at once."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self.closing = False

    def close(self) -> None:
        """Cancel the work of all calls, those to come too; each is answered with an error."""
        self.closing = True
        for scope in self._scopes:
            scope.cancel()

    async def outcome(self, path: str, work: Callable[[], Result]) -> JsonObject:
        """Do the work: {"result": ...} or {"error": ...}, whatever happens.

        Only the cancellation of an outer scope (the client left) gets through.
        """
        outcome: JsonObject = {"error": error_to_json(_stopping())}
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self.closing:
                scope.cancel()
            try:
                outcome = {"result": await work()}
            except Exception as error:  # noqa: BLE001  task boundary: logged and told
                outcome = {"error": error_to_json(explain(path, error))}
            finally:
                self._scopes.discard(scope)
        return outcome


class Call:
    """One HTTP request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, calls: Calls) -> None:
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self._receive = receive
        self._send = send
        self._calls = calls
        self._started = False
        self._ending = False

    # --- the request --------------------------------------------------------------------------

    async def json_body(self) -> object:
        """The body as JSON; an empty one is an empty object.

        Raises:
            UsageError: larger than `MAX_JSON_BYTES`, not JSON, or the client left.
        """
        body = bytearray()
        with trio.move_on_after(_BODY_TIMEOUT_SECS) as waiting:
            async with aclosing(self.body()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > MAX_JSON_BYTES:
                        raise UsageError(f"The request is larger than {MAX_JSON_BYTES} bytes.")
        if waiting.cancelled_caught:
            raise UsageError(f"The request did not end within {_BODY_TIMEOUT_SECS:g} s.")
        if not body:
            return {}
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The request is not JSON: {error}.") from error

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; reading slowly slows the client down.

        Raises:
            ClientGoneError: the client left before the end of it.
        """
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("The client closed the connection within its request.")
            if piece := message.get("body"):
                yield piece
            if not message.get("more_body", False):
                return

    async def _watch(
        self, gone: trio.CancelScope, pieces: trio.MemorySendChannel[bytes] | None = None
    ) -> None:
        """Pass the body on to `pieces` while somebody takes it, drop what else the client sends,
        and cancel `gone` when it leaves.
        """
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                # Hypercorn also says this when it has sent the last of the answer, from within
                # that very send, which must go on to its end: it closes the connection after it.
                if not self._ending:
                    gone.cancel()
                return
            if pieces is None:
                continue
            try:
                if piece := message.get("body"):
                    await pieces.send(piece)
                if not message.get("more_body", False):
                    pieces.close()
                    pieces = None
            except trio.BrokenResourceError:
                pieces = None  # the work wants no more of it

    # --- answers ------------------------------------------------------------------------------

    async def answer_json(self, work: Callable[[], Result]) -> None:
        """One JSON object: the result itself, or {"error": ...} with the error's status."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            outcome = await self._calls.outcome(self.path, work)
            status = _status(outcome)
            shown = outcome.get("result", outcome)
            await self._start(status, "application/json")
            await self._send_body(await _encode(shown), last=True)
            nursery.cancel_scope.cancel()

    async def answer_ndjson(self, work: Work) -> None:
        """Events as lines while the work runs, then its result or error as the last line.

        An error before the first line sets the status of the answer.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            await self._run_ndjson(nursery, work)

    async def refuse(self, error: MeshError) -> None:
        """The answer to a request whose body makes no sense."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            outcome: JsonObject = {"error": error_to_json(error)}
            await self._start(_status(outcome), NDJSON)
            await self._send_body(await _encode(outcome), last=True)
            nursery.cancel_scope.cancel()

    async def answer_upload(self, work: Callable[[AsyncIterator[bytes], Emit], Result]) -> None:
        """Like `answer_ndjson` for work that takes the request's body as it comes.

        Slow work slows the client down; a client that leaves within the body cancels it.
        """
        sender, receiver = trio.open_memory_channel[bytes](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope, sender)

            async def take(emit: Emit) -> JsonObject:
                async with receiver:
                    return await work(receiver, emit)

            await self._run_ndjson(nursery, take)

    async def _run_ndjson(self, nursery: trio.Nursery, work: Work) -> None:
        feed = EventFeed()
        pumped = trio.Event()
        nursery.start_soon(self._pump, feed, pumped)
        outcome = await self._calls.outcome(self.path, lambda: work(feed.emit))
        feed.close()
        await pumped.wait()
        await self._start(_status(outcome), NDJSON)
        await self._send_body(await _encode(outcome), last=True)
        nursery.cancel_scope.cancel()

    async def _pump(self, feed: EventFeed, done: trio.Event) -> None:
        while True:
            events: Iterable[Event] | None = [{"type": "heartbeat"}]
            with trio.move_on_after(HEARTBEAT_SECS):
                events = await feed.take()
            if events is None:
                done.set()
                return
            if lines := b"".join(_line({"event": event}) for event in events):
                await self._start(200, NDJSON)
                await self._send_body(lines)

    async def answer_bytes(self, open_bytes: OpenBytes) -> None:
        """The bytes; an error before the first is JSON with its status.

        A later error cuts the connection within the chunked body, which every HTTP client takes
        for what it is: an answer that is not whole.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)

            async def copy() -> JsonObject:
                async with open_bytes() as pieces:
                    async for piece in pieces:
                        await self._start(200, "application/octet-stream")
                        await self._send_body(piece)
                return {}

            outcome = await self._calls.outcome(self.path, copy)
            if "result" in outcome:
                await self._start(200, "application/octet-stream")
                await self._send_body(b"", last=True)
            elif not self._started:
                await self._start(_status(outcome), "application/json")
                await self._send_body(await _encode(outcome), last=True)
            else:
                log.warning("api_stream_broken_off", path=self.path, **_told(outcome))
            nursery.cancel_scope.cancel()

    async def _start(self, status: int, content_type: str) -> None:
        if self._started:
            return
        self._started = True
        headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send_body(self, body: bytes, *, last: bool = False) -> None:
        self._ending = last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


class ClientGoneError(MeshError):
    """The client closed its connection: there is nobody to tell."""


def explain(path: str, error: Exception) -> MeshError:
    """What to tell the client about `error`; a bug is logged with its traceback."""
    known = as_mesh_error(error)
    if known is not None:
        return known
    log.error("api_call_failed", path=path, exc_info=error)
    return internal_error(error)


def _stopping() -> MeshError:
    return ApiUnavailableError(
        "The node is stopping; the command was cancelled.",
        hint="Start it again with `meshnode start`, then repeat the command.",
    )


def _status(outcome: JsonObject) -> int:
    error = outcome.get("error")
    status = error.get("http_status") if isinstance(error, dict) else 200
    return status if isinstance(status, int) else 500


def _told(outcome: JsonObject) -> dict[str, object]:
    error = outcome.get("error")
    return {"code": error["code"], "error": error["message"]} if isinstance(error, dict) else {}


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


async def _encode(value: object) -> bytes:
    """As JSON line; in a thread, because a listing may have a million entries."""
    return await trio.to_thread.run_sync(_line, value)
