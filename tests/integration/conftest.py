"""One small mesh of real processes, shared by the tests that leave it as they found it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.testnet import Testnet, open_testnet


@pytest.fixture(scope="session")
def mesh() -> Iterator[Testnet]:
    """Three running nodes, three copies: every node holds everything."""
    with open_testnet(3) as testnet:
        yield testnet


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    """Five mebibytes that nobody has put before."""
    path = tmp_path / "random.bin"
    path.write_bytes(random.randbytes(5 << 20))
    return path
