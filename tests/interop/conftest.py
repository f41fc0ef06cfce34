"""Our bare host connected with a peer of another implementation, dialled by either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.limits import HostLimits

from .foreign import (
    ANSWER_WITHIN,
    JS,
    ROOT,
    STOCK_COMMAND,
    ForeignPeer,
    ForeignProcess,
    js_command,
    running,
    why_no_js,
)
from .roles import Roles

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
WE_DIAL = "we dial"


class OurPeer:
    """One side of a check, played by our host toward the foreign peer."""

    def __init__(self, host: Libp2pHost, toward: PeerId) -> None:
        self.host = host
        self.toward = toward
        self._roles = Roles()
        for protocol, handler in self._roles.handlers.items():
            host.set_handler(protocol, handler)

    async def play(self, role: str, **arguments: object) -> object:
        with trio.fail_after(ANSWER_WITHIN):
            return await self._roles.play(role, self.open_stream, arguments)

    async def open_stream(self, protocol: str) -> Stream:
        return await self.host.open_stream(self.toward, protocol)


Side = OurPeer | ForeignPeer


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between two sides."""

    ours: OurPeer
    theirs: ForeignPeer
    we_dialled: bool

    def pair(self, opener: str) -> tuple[Side, Side]:
        """The side that opens the streams, and the other."""
        return (self.ours, self.theirs) if opener == "we open" else (self.theirs, self.ours)


Connected = Callable[..., AbstractAsyncContextManager[Link]]


@asynccontextmanager
async def link(
    process: ForeignProcess, dialler: str, limits: HostLimits | None = None
) -> AsyncIterator[Link]:
    identity = Identity.generate()
    async with (
        process.talking() as theirs,
        open_libp2p_host(identity, listen=LOOPBACK, limits=limits) as host,
    ):
        toward = PeerId.parse(theirs.peer)
        theirs.toward = str(host.peer_id)
        ours = OurPeer(host, toward)
        with trio.fail_after(10):
            async with host.events() as events:
                if dialler == WE_DIAL:
                    host.add_addresses(toward, [theirs.address])
                    await host.connect(toward)
                else:
                    await theirs.play("dial", address=host.addresses()[0])
                    if toward not in host.connected_peers():
                        await events.receive()
            await theirs.play("wait_connected")
        yield Link(ours, theirs, dialler == WE_DIAL)


@pytest.fixture(scope="session")
def js_installed() -> None:
    """For tests that run a js peer of their own: a skip raised inside trio loses its reason."""
    if reason := why_no_js():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def js_process(js_installed: None) -> Iterator[ForeignProcess]:
    with running(js_command(), JS) as process:
        yield process


@pytest.fixture(scope="session")
def stock_process() -> Iterator[ForeignProcess]:
    with running(STOCK_COMMAND, ROOT) as process:
        yield process


@pytest.fixture(params=["js", "stock"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def process(request: pytest.FixtureRequest, kind: str) -> ForeignProcess:
    """A running peer of either implementation, shared by all tests."""
    found = request.getfixturevalue(f"{kind}_process")
    assert isinstance(found, ForeignProcess)
    return found


@pytest.fixture
def own_process(request: pytest.FixtureRequest, kind: str) -> Iterator[ForeignProcess]:
    """A peer for one test alone, to be killed."""
    if kind == "js":
        request.getfixturevalue("js_installed")
    command, folder = (js_command(), JS) if kind == "js" else (STOCK_COMMAND, ROOT)
    with running(command, folder) as process:
        yield process


@pytest.fixture(params=[WE_DIAL, "they dial"])
def connected(request: pytest.FixtureRequest, process: ForeignProcess) -> Connected:
    """Opens the link. Not the link itself: a host is opened and closed in the task of the test."""
    return partial(link, process, request.param)


@pytest.fixture(params=["we open", "they open"])
def opener(request: pytest.FixtureRequest) -> str:
    return str(request.param)
