"""The HTTP API: one route per verb, all under /v1. See docs/api.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...errors import NotFoundError, UsageError
from . import operations
from .calls import Call, Calls, ClientGoneError, Emit, JsonObject
from .error_json import error_to_json
from .face import NodeFace
from .fields import fields_of_query

MAX_QUERY_FIELDS = 32

Operation = Callable[[NodeFace, object, Emit], Awaitable[JsonObject]]
Answer = Callable[[Call], Awaitable[None]]

_QUERY_KINDS: dict[str, type] = {
    "offset": int,
    "length": int,
    "replication": int,
    "public": bool,
}

_READS: dict[str, Operation] = {
    "status": operations.status,
    "peers": operations.peers,
    "catalogue": operations.catalogue,
    "config": operations.config,
}
_WORKS: dict[str, Operation] = {
    "put": operations.put,
    "get": operations.get,
    "ls": operations.ls,
    "stat": operations.stat,
    "why": operations.why,
    "rm": operations.rm,
    "stop": operations.stop,
}


class _Endpoint:
    """An ASGI application that answers every call of one route."""

    def __init__(self, calls: Calls, answer: Answer) -> None:
        self._calls = calls
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(Call(scope, receive, send, self._calls))


def build_app(node: NodeFace, calls: Calls) -> Starlette:
    """The ASGI application that offers `node`; `calls` learns of every call in progress."""

    def read(operation: Operation) -> Answer:
        async def answer(call: Call) -> None:
            await call.answer_json(lambda: operation(node, _query(call), _ignore))

        return answer

    def work(operation: Operation) -> Answer:
        async def answer(call: Call) -> None:
            try:
                request = await call.json_body()
            except ClientGoneError:
                return
            except UsageError as error:
                await call.refuse(error)
                return
            await call.answer_ndjson(lambda emit: operation(node, request, emit))

        return answer

    async def put_stream(call: Call) -> None:
        async def put(pieces: AsyncIterator[bytes], emit: Emit) -> JsonObject:
            return await operations.put_stream(node, _query(call), pieces, emit)

        await call.answer_upload(put)

    async def cat(call: Call) -> None:
        await call.answer_bytes(lambda: operations.cat(node, _query(call)))

    answers: list[tuple[str, str, Answer]] = [
        *(("GET", name, read(operation)) for name, operation in _READS.items()),
        *(("POST", name, work(operation)) for name, operation in _WORKS.items()),
        ("POST", "put-stream", put_stream),
        ("GET", "cat", cat),
    ]
    routes = [
        Route(f"/v1/{name}", _Endpoint(calls, answer), methods=[method])
        for method, name, answer in answers
    ]
    handlers = {404: _no_such_route, 405: _wrong_method}
    return Starlette(routes=routes, exception_handlers=handlers)


def _query(call: Call) -> JsonObject:
    """The query as a request; percent-encoded bytes that are not UTF-8 survive as surrogates.

    Raises:
        UsageError: not a query, or a field twice.
    """
    try:
        pairs = parse_qsl(
            call.query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(call.query),
            errors="surrogateescape",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError as error:
        raise UsageError(f"The query of {call.path} makes no sense: {error}.") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise UsageError(f"The query of {call.path} has the same field twice.")
    return fields_of_query(fields, _QUERY_KINDS)


def _ignore(event: JsonObject) -> None:
    """Reads are over before anybody could want to follow them."""


async def _no_such_route(request: Request, error: Exception) -> Response:
    told = NotFoundError(
        f"The API has no {request.url.path[:80]!r}.",
        hint="Client and node may be of different versions; compare `meshnode version`.",
    )
    return JSONResponse({"error": error_to_json(told)}, 404)


async def _wrong_method(request: Request, error: Exception) -> Response:
    told = UsageError(f"{request.url.path[:80]} does not answer to {request.method[:20]}.")
    return JSONResponse({"error": error_to_json(told)}, 405)
