"""A fake node behind the real API on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from meshnode.config import load_config
from meshnode.node.api import serve_api

from tests.unit.api.fake_node import FakeNode


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return FakeNode(load_config(home, env={}))


@asynccontextmanager
async def _client(path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://meshnode/v1", timeout=30
    ) as client:
        yield client


@pytest.fixture
async def api(node: FakeNode) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API that serves `node`."""
    path = node.config.paths.socket
    async with serve_api(node, path), _client(path) as client:
        yield client
