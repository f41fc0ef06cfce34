"""Clients that leave, lag or stand still, and a server that stops under its clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from meshnode.errors import NotFoundError
from meshnode.node.api import serve_api
from meshnode.node.transfer import Progress, Started

from tests.unit.api.fake_node import LINK, FakeNode

_PIECE = bytes(1 << 16)


def request(verb: str, body: bytes = b"", *, headers: str = "") -> bytes:
    method = "POST" if verb.startswith(("put", "get")) else "GET"
    length = headers or f"Content-Length: {len(body)}\r\n"
    return f"{method} /v1/{verb} HTTP/1.1\r\nHost: meshnode\r\n{length}\r\n".encode() + body


PUT = request("put", b'{"sources": ["/a"]}')
GET = request("get", json.dumps({"link": str(LINK), "destination": "/x"}).encode())
CAT = request("cat?link=" + str(LINK).replace("#", "%23"))
UPLOAD = request("put-stream?name=x", headers="Transfer-Encoding: chunked\r\n")


async def connect(node: FakeNode) -> trio.SocketStream:
    return await trio.open_unix_socket(str(node.config.paths.socket))


@pytest.mark.parametrize("call", [PUT, GET, CAT, UPLOAD + b"3\r\nabc\r\n0\r\n\r\n"])
async def test_a_client_that_leaves_cancels_its_work(node: FakeNode, call: bytes) -> None:
    node.hang = True
    async with serve_api(node, node.config.paths.socket):
        client = await connect(node)
        await client.send_all(call)
        await node.entered.wait()
        assert not node.cancelled.is_set()
        await client.aclose()
        with trio.fail_after(20):
            await node.cancelled.wait()


async def test_a_client_that_leaves_within_its_upload_cancels_the_put(node: FakeNode) -> None:
    async with serve_api(node, node.config.paths.socket):
        client = await connect(node)
        await client.send_all(UPLOAD + b"5\r\nhello\r\n")
        await node.entered.wait()
        await client.aclose()
    assert not any(call for call in node.calls if call[0] == "get")
    assert bytes(node.received) in (b"", b"hello")


async def test_a_client_that_ends_its_sending_hears_when_the_work_is_cleaned_up(
    node: FakeNode,
) -> None:
    node.hang = True
    async with serve_api(node, node.config.paths.socket):
        client = await connect(node)
        await client.send_all(PUT)
        await node.entered.wait()
        await client.send_eof()
        with trio.fail_after(20):
            while await client.receive_some(65536):
                pass
        assert node.cleaned_up


async def test_a_client_that_does_not_read_gets_the_result_all_the_same(node: FakeNode) -> None:
    many = 30_000
    node.events = [Started(str(n), n, 1) for n in range(many)] + [Progress(7, 7)]
    async with serve_api(node, node.config.paths.socket):
        client = await connect(node)
        await client.send_all(PUT)
        await node.entered.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        received = bytearray()
        with trio.fail_after(30):
            while b'{"result"' not in received or not received.endswith(b"0\r\n\r\n"):
                received += await client.receive_some(65536)
        await client.aclose()
    assert received.count(b'"started"') < many
    assert b'"lost"' in received


async def test_cat_stops_fetching_while_its_client_does_not_read(node: FakeNode) -> None:
    node.pieces = [_PIECE] * 1000
    async with serve_api(node, node.config.paths.socket):
        client = await connect(node)
        await client.send_all(CAT)
        await node.entered.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < node.pieces_given < 100
        await client.aclose()


async def test_an_upload_waits_for_a_node_that_does_not_take_it(node: FakeNode) -> None:
    node.read_gate = trio.Event()
    sent = 0
    async with serve_api(node, node.config.paths.socket):
        client = await connect(node)
        await client.send_all(UPLOAD)
        with trio.move_on_after(0.5):
            while True:
                await client.send_all(b"10000\r\n" + _PIECE + b"\r\n")
                sent += 1
        assert 0 < sent < 200
        assert not node.received
        await client.aclose()


async def test_an_upload_that_fails_early_is_told_so_while_the_client_still_sends(
    node: FakeNode,
) -> None:
    node.error = NotFoundError("no room for it")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield _PIECE

    transport = httpx.AsyncHTTPTransport(uds=str(node.config.paths.socket))
    async with (
        serve_api(node, node.config.paths.socket),
        httpx.AsyncClient(transport=transport, timeout=30) as api,
    ):
        answer = await api.post("http://x/v1/put-stream?name=x", content=endless())
    assert answer.status_code == 404
    assert json.loads(answer.text)["error"]["message"] == "no room for it"


async def test_a_stopping_server_cancels_open_calls_and_tells_them(node: FakeNode) -> None:
    node.hang = True
    answers: list[httpx.Response] = []
    transport = httpx.AsyncHTTPTransport(uds=str(node.config.paths.socket))

    async def put(api: httpx.AsyncClient) -> None:
        answers.append(await api.post("http://x/v1/put", json={"sources": ["/a"]}))

    async with (
        trio.open_nursery() as nursery,
        httpx.AsyncClient(transport=transport, timeout=30) as api,
    ):
        async with serve_api(node, node.config.paths.socket):
            nursery.start_soon(put, api)
            await node.entered.wait()
        while not answers:
            await trio.lowlevel.checkpoint()
    assert node.cleaned_up
    assert json.loads(answers[0].text)["error"]["code"] == "api_unavailable"


@pytest.mark.parametrize("call", [b"", b"GET /v1/sta", PUT, CAT, UPLOAD, UPLOAD + b"5\r\nhe"])
async def test_a_server_stops_whatever_its_clients_do(node: FakeNode, call: bytes) -> None:
    node.hang = call is PUT
    node.pieces = [_PIECE] * 1000
    with trio.fail_after(20):
        async with serve_api(node, node.config.paths.socket):
            client = await connect(node)
            await client.send_all(call)
            await trio.testing.wait_all_tasks_blocked(0.05)
    await client.aclose()


async def test_more_connections_than_allowed_wait_and_are_then_served(node: FakeNode) -> None:
    async with serve_api(node, node.config.paths.socket):
        idle = [await connect(node) for _ in range(64)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        late = await connect(node)
        await late.send_all(request("status"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not node.entered.is_set()
        await idle[0].aclose()
        with trio.fail_after(20):
            assert (await late.receive_some(65536)).startswith(b"HTTP/1.1 200")
        for stream in [*idle, late]:
            await stream.aclose()
