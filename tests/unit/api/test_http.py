"""The API as its clients see it, over a real socket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from meshnode.errors import (
    DeadlineError,
    InputError,
    MeshError,
    NotFoundError,
    QuotaError,
    UsageError,
)
from meshnode.node.api import calls
from meshnode.node.transfer import GetOptions, Progress, PutOptions, Started, StreamSource

from tests.unit.api.fake_node import (
    HOSTILE_NAME,
    LINK,
    OTHER_LINK,
    PEER,
    FakeNode,
    file_entry,
    folder_manifest,
)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def error(answer: httpx.Response) -> dict[str, Any]:
    (line,) = answer.text.splitlines()
    found: dict[str, Any] = json.loads(line)["error"]
    return found


async def test_status_is_one_object(api: httpx.AsyncClient) -> None:
    answer = await api.get("/status")
    assert answer.status_code == 200
    assert answer.json()["peer_id"] == str(PEER)


async def test_transfers_are_told_by_link_and_by_number(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.transfer_facts = [{"kind": "put"}, {"kind": "get"}]
    answer = await api.post("/why", json={"count": 2})
    assert lines(answer)[-1]["result"] == {"transfers": [{"kind": "put"}, {"kind": "get"}]}
    await api.post("/why", json={"link": str(LINK)})
    assert node.calls[-1] == ("transfers", LINK.digest, 1)
    node.transfer_facts = []
    assert error(await api.post("/why", json={"link": str(LINK)}))["code"] == "not_found"
    assert error(await api.post("/why", json={"count": 1000}))["code"] == "usage"


async def test_peers_and_catalogue_are_lists_in_an_object(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.peer_facts = [{"name": "other"}]
    node.catalogue_facts = [{"name": "file"}]
    assert (await api.get("/peers")).json() == {"peers": [{"name": "other"}]}
    assert (await api.get("/catalogue")).json() == {"entries": [{"name": "file"}]}


async def test_config_tells_values_and_where_they_come_from(api: httpx.AsyncClient) -> None:
    settings = (await api.get("/config")).json()["settings"]
    assert settings["storage.replication"] == {"value": 3, "origin": "default"}


async def test_a_put_tells_events_and_then_its_report(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.events = [Started("file", 10, 1), Progress(10, 1)]
    answer = await api.post("/put", json={"sources": ["/a/file"], "replication": 2})
    *events, last = lines(answer)
    assert answer.status_code == 200
    assert [event["event"]["type"] for event in events] == ["started", "progress"]
    assert last["result"]["sources"][0]["link"] == str(LINK)
    assert node.calls == [("put", (Path("/a/file"),), PutOptions(replication=2))]


async def test_a_get_passes_its_options_on(api: httpx.AsyncClient, node: FakeNode) -> None:
    request = {"link": str(LINK), "destination": "/to/there", "path": "in/side", "force": True}
    answer = await api.post("/get", json=request)
    assert lines(answer)[-1]["result"]["size"] == 1234
    options = GetOptions(force=True, path=b"in/side")
    assert node.calls == [("get", LINK, Path("/to/there"), options)]


async def test_a_special_file_is_never_a_destination(
    api: httpx.AsyncClient, node: FakeNode, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    request = {"link": str(LINK), "destination": str(tmp_path / "pipe"), "force": True}
    answer = await api.post("/get", json=request)
    assert error(answer)["code"] == "destination"
    assert node.calls == []


async def test_paths_that_are_not_utf8_reach_the_node_as_they_are(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    await api.post("/put", content=b'{"sources": ["/caf\\udce9"]}')
    (call,) = node.calls
    (path,) = call[1]  # type: ignore[misc]
    assert os.fsencode(path) == b"/caf\xe9"


async def test_names_that_are_not_utf8_come_back_as_they_are(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.found = folder_manifest(file_entry(b"caf\xe9"), file_entry(HOSTILE_NAME))
    answer = await api.post("/ls", json={"link": str(LINK)})
    entries = lines(answer)[-1]["result"]["entries"]
    names = [entry["path"].encode("utf-8", "surrogateescape") for entry in entries]
    assert names == [b"caf\xe9", HOSTILE_NAME]
    assert "\x1b" not in answer.text


async def test_rm_goes_on_after_a_link_that_fails(api: httpx.AsyncClient, node: FakeNode) -> None:
    answer = await api.post("/rm", json={"links": [str(OTHER_LINK), str(LINK)]})
    first, second = lines(answer)[-1]["result"]["links"]
    assert first["error"]["code"] == "not_found"
    assert second["removed_here"] == 1


async def test_stop_answers_and_then_asks_the_node_to_end(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    answer = await api.post("/stop")
    assert lines(answer) == [{"result": {"stopping": True}}]
    assert node.stop_requested.is_set()


@pytest.mark.parametrize(
    "raised",
    [
        NotFoundError("nobody", hint="later"),
        QuotaError("full"),
        DeadlineError("slow"),
        InputError("unreadable"),
        UsageError("nonsense"),
    ],
)
@pytest.mark.parametrize("verb", ["put", "status", "cat"])
async def test_an_error_has_its_status_and_its_words(
    api: httpx.AsyncClient, node: FakeNode, raised: MeshError, verb: str
) -> None:
    node.error = raised
    if verb == "put":
        answer = await api.post("/put", json={"sources": ["/a"]})
    else:
        answer = await api.get("/status" if verb == "status" else f"/cat?link={quote(str(LINK))}")
    assert answer.status_code == raised.http_status
    assert error(answer) == {
        "code": raised.code,
        "message": raised.message,
        "hint": raised.hint,
        "exit_code": raised.exit_code,
        "http_status": raised.http_status,
    }


async def test_an_error_after_events_is_the_last_line(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.events = [Started("file", 10, 1)] * 3
    node.error = NotFoundError("gone")
    found = lines(await api.post("/get", json={"link": str(LINK), "destination": "/x"}))
    assert found[-1]["error"]["code"] == "not_found"


async def test_a_bug_is_told_as_one_and_its_details_are_not(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.error = ZeroDivisionError("the secret is 42")
    answer = await api.get("/status")
    assert answer.status_code == 500
    assert "42" not in answer.text
    assert "ZeroDivisionError" in error(answer)["message"]
    node.error = None
    assert (await api.get("/status")).status_code == 200


@pytest.mark.parametrize(
    ("verb", "body", "says"),
    [
        ("put", b"{", "not JSON"),
        ("put", b"[" * 100_000, "not JSON"),
        ("put", b"[1]", "JSON object"),
        ("put", b"", "'sources'"),
        ("put", b'{"sources": ["relative"]}', "absolute"),
        ("put", b'{"sources": ["/a"], "publik": true}', "'publik'"),
        ("put", b'{"sources": ["/a"], "replication": 99}', "'replication'"),
        ("put", b'{"sources": ["/a"], "chunker": "axe"}', "'chunker'"),
        ("get", b'{"link": "junk", "destination": "/x"}', "not a link"),
        ("get", b'{"destination": "/x"}', "'link'"),
        ("ls", b'{"link": 3}', "'link'"),
        ("rm", b'{"links": []}', "'links'"),
        ("stop", b'{"now": true}', "'now'"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_by_name(
    api: httpx.AsyncClient, node: FakeNode, verb: str, body: bytes, says: str
) -> None:
    answer = await api.post(f"/{verb}", content=body)
    assert answer.status_code == 400
    assert error(answer)["exit_code"] == 2
    assert says in error(answer)["message"]
    assert node.calls == []


async def test_a_request_of_more_than_a_mebibyte_is_refused(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    answer = await api.post("/put", content=b" " * (8 * calls.MAX_JSON_BYTES))
    assert answer.status_code == 400
    assert "larger than" in error(answer)["message"]
    assert (await api.get("/status")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/put", 405),
        ("POST", "/status", 405),
        ("GET", "/status?x=1", 400),
        ("GET", "/cat", 400),
        ("GET", "/cat?link=a&link=b", 400),
        ("GET", "/cat?%zz", 400),
    ],
)
async def test_calls_that_do_not_exist_are_told_in_json(
    api: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await api.request(method, path)
    assert answer.status_code == status
    assert error(answer)["message"]


async def test_cat_gives_the_bytes_and_passes_its_range_on(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    answer = await api.get(f"/cat?link={quote(str(LINK))}&path=caf%E9&offset=3&length=4")
    assert answer.status_code == 200
    assert answer.content == b"e bytes"
    assert node.calls == [("stream", LINK, b"caf\xe9", 3, 4)]


async def test_cat_of_nothing_is_an_empty_answer(api: httpx.AsyncClient, node: FakeNode) -> None:
    node.pieces = ()
    answer = await api.get("/cat", params={"link": str(LINK)})
    assert (answer.status_code, answer.content) == (200, b"")


async def test_an_error_in_the_middle_of_cat_breaks_the_answer_off(
    api: httpx.AsyncClient, node: FakeNode
) -> None:
    node.error, node.break_after = NotFoundError("a chunk is gone"), 1
    received = bytearray()

    async def read(answer: httpx.Response) -> None:
        async for piece in answer.aiter_raw():
            received.extend(piece)

    async with api.stream("GET", "/cat", params={"link": str(LINK)}) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await read(answer)
    assert received == b"some "


async def test_an_upload_reaches_the_node_whole(api: httpx.AsyncClient, node: FakeNode) -> None:
    data = bytes(range(256)) * 10_000
    answer = await api.post("/put-stream?name=true&public=true", content=data)
    assert lines(answer)[-1]["result"]["sources"][0]["name"] == "true"
    assert node.received == data
    ((_, (source,), options),) = node.calls  # type: ignore[misc]
    assert isinstance(source, StreamSource)
    assert options == PutOptions(public=True)


@pytest.mark.parametrize("name", ["", "a/b", "..", "%00", "x" * 300])
async def test_an_upload_needs_the_name_of_a_file(
    api: httpx.AsyncClient, node: FakeNode, name: str
) -> None:
    answer = await api.post(f"/put-stream?name={name}", content=b"data")
    assert answer.status_code == 400
    assert node.calls == []


async def test_a_long_silence_is_broken_by_heartbeats(
    api: httpx.AsyncClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "HEARTBEAT_SECS", 0.01)
    node.hang = True
    async with api.stream("POST", "/put", json={"sources": ["/a"]}) as answer:
        async for line in answer.aiter_lines():
            assert json.loads(line) == {"event": {"type": "heartbeat"}}
            break
