"""Names and numbers to connections; name servers that never answer hold up nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import trio
from meshnode.errors import PeerError
from meshnode.node.transport import libp2p_tcp
from meshnode.node.transport.libp2p_tcp import open_tcp


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def answering(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def getaddrinfo(name: str, *_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (host, 0)) for host in hosts]

    monkeypatch.setattr(libp2p_tcp, "getaddrinfo", getaddrinfo)


async def test_the_first_address_of_a_name_that_answers_is_taken(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "127.0.0.2", "127.0.0.1", "127.0.0.1")
    async with await open_tcp(f"/dns/node.example/tcp/{port}", trio.CapacityLimiter(1)) as stream:
        assert stream.socket.getpeername() == ("127.0.0.1", port)


async def test_a_name_whose_addresses_all_refuse_is_told_as_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, "127.0.0.1", "127.0.0.2")
    with pytest.raises(PeerError, match="refused"):
        await open_tcp("/dns/node.example/tcp/1", trio.CapacityLimiter(1))


async def test_an_unknown_name_is_an_error_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(libp2p_tcp, "getaddrinfo", getaddrinfo)
    with pytest.raises(PeerError, match="name or service not known"):
        await open_tcp("/dns/node.example/tcp/1", trio.CapacityLimiter(1))


async def test_name_servers_that_never_answer_take_no_thread_from_others(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def getaddrinfo(*_: object) -> list[object]:
        answered.wait(30)
        raise OSError

    monkeypatch.setattr(libp2p_tcp, "getaddrinfo", getaddrinfo)
    resolvers = trio.CapacityLimiter(2)
    try:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(open_tcp, f"/dns/node{number}.example/tcp/1", resolvers)
            await trio.testing.wait_all_tasks_blocked()
            assert resolvers.statistics().borrowed_tokens == 2
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            with trio.fail_after(20):
                stream = await open_tcp(f"/ip4/127.0.0.1/tcp/{port}", resolvers)
            await stream.aclose()
            nursery.cancel_scope.cancel()
    finally:
        answered.set()
