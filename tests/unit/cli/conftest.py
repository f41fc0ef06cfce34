"""The command line against a fake node: behind the real API in a thread, or embedded."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
import trio
from meshnode.cli.main import main
from meshnode.config import Config, load_config
from meshnode.node.api import serve_api

from tests.unit.api.fake_node import FakeNode


@dataclass
class Done:
    """What one command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, the one that commands use."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("MESHNODE_HOME", str(path))
    monkeypatch.setenv("COLUMNS", "100")
    return path


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    """No log of the node's side among the output of a command, nor its set-up left behind."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def node(home: Path) -> FakeNode:
    return FakeNode(load_config(home, env={}))


@pytest.fixture
def served(node: FakeNode) -> Iterator[FakeNode]:
    """The node, running behind its API."""
    with serving(node):
        yield node


@pytest.fixture
def settled(node: FakeNode) -> Iterator[FakeNode]:
    """The node, running behind its API and with a configuration that is older than that."""
    config, api = node.config.paths.config_file, node.config.paths.socket
    config.touch()
    with serving(node):
        while api.stat().st_ctime_ns <= config.stat().st_ctime_ns:
            api.chmod(0o600)  # which makes the socket younger
        yield node


@contextmanager
def serving(node: FakeNode) -> Iterator[None]:
    started = threading.Event()
    tokens: list[trio.lowlevel.TrioToken] = []
    stop = trio.Event()

    async def serve() -> None:
        async with serve_api(node, node.config.paths.socket):
            tokens.append(trio.lowlevel.current_trio_token())
            started.set()
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(20)
    try:
        yield
    finally:
        tokens[0].run_sync_soon(stop.set)
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def embedded(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """The node that a command starts when none is running."""
    import meshnode.cli.embedded

    @asynccontextmanager
    async def open_fake(config: Config, *, serve_peers: bool) -> AsyncIterator[FakeNode]:
        assert not serve_peers
        yield node

    monkeypatch.setattr(meshnode.cli.embedded, "open_node", open_fake)
    node.config.paths.mesh_file.touch()
    return node


@pytest.fixture
def run(home: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in this process."""

    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    return run
