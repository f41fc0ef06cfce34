"""The API's socket file: whose it is, who may use it, when it goes."""

from __future__ import annotations

import os
import socket
import stat

import pytest
import trio
from meshnode.errors import MeshError, RefusedError
from meshnode.node.api import serve_api

from tests.unit.api.fake_node import FakeNode


async def test_only_its_owner_may_use_the_socket(node: FakeNode) -> None:
    path = node.config.paths.socket
    old = os.umask(0)
    try:
        async with serve_api(node, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


async def test_the_socket_goes_with_its_server(node: FakeNode) -> None:
    async with serve_api(node, node.config.paths.socket):
        pass
    assert not node.config.paths.socket.exists()


async def test_a_socket_left_by_a_dead_process_is_replaced(node: FakeNode) -> None:
    path = node.config.paths.socket
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with serve_api(node, path), await trio.open_unix_socket(str(path)):
        pass


async def test_a_socket_that_answers_is_left_alone(node: FakeNode) -> None:
    path = node.config.paths.socket
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(RefusedError, match="Another process"):
            async with serve_api(node, path):
                pass
    assert path.exists()


async def test_a_socket_whose_queue_is_full_is_left_alone(node: FakeNode) -> None:
    path = node.config.paths.socket
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(path))
        other.listen(0)
        waiting.connect(str(path))
        with pytest.raises(RefusedError, match="Another process"):
            async with serve_api(node, path):
                pass


async def test_a_file_in_the_way_is_not_removed(node: FakeNode) -> None:
    path = node.config.paths.socket
    path.write_text("precious")
    with pytest.raises(RefusedError, match="not a socket"):
        async with serve_api(node, path):
            pass
    assert path.read_text() == "precious"


async def test_a_folder_others_can_write_to_is_refused(node: FakeNode) -> None:
    path = node.config.paths.socket
    path.parent.chmod(0o777)
    with pytest.raises(RefusedError, match="Other users"):
        async with serve_api(node, path):
            pass


async def test_a_missing_folder_is_told(node: FakeNode) -> None:
    path = node.config.paths.socket.parent / "missing" / "api.sock"
    with pytest.raises(MeshError, match="cannot be made"):
        async with serve_api(node, path):
            pass


async def test_the_socket_of_a_later_server_is_not_removed(node: FakeNode) -> None:
    path = node.config.paths.socket
    async with serve_api(node, path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as later:
            later.bind(str(path))
    assert path.exists()
