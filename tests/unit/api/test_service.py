"""What a service does around its node."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from meshnode.node.api import service


class _Node:
    """Stops at once; notes how much is kept out of garbage collections by then."""

    frozen = 0

    async def wait_ready(self) -> None:
        await trio.sleep_forever()

    async def wait_stop_requested(self) -> None:
        self.frozen = gc.get_freeze_count()


async def _no_signals() -> AsyncIterator[int]:
    await trio.sleep_forever()
    yield 0


async def test_what_a_node_is_made_of_is_kept_out_of_garbage_collections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = _Node()

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Any]:
        yield node

    monkeypatch.setattr(service, "open_node", opened)
    monkeypatch.setattr(service, "serve_api", opened)
    monkeypatch.setattr(service, "_force_end_later", lambda: None)
    config: Any = SimpleNamespace(paths=SimpleNamespace(socket=None))
    before = gc.get_freeze_count()
    try:
        await service._serve(config, lambda _: None, _no_signals())
    finally:
        gc.unfreeze()
    assert node.frozen > before
