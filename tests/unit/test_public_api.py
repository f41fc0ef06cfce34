"""The names of `import meshnode`, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import meshnode
import pytest


def test_every_public_name_can_be_imported() -> None:
    for name in meshnode.__all__:
        assert getattr(meshnode, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = meshnode.nonsense


def test_importing_the_package_loads_nothing_of_the_network() -> None:
    script = "import meshnode, sys; print([m for m in ('libp2p', 'trio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
