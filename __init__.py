"""meshnode: a private, encrypted, self-healing chunk store over machines you own.

The public API. Names are imported on first use, because the network stack behind a node takes most
of a second to load and `meshnode --version` or a client of the HTTP API need none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import Config, load_config
    from .errors import MeshError, WeakError
    from .node.content import Link
    from .node.node import Node, open_node
    from .node.transfer import GetOptions, GetReport, PutOptions, PutReport

__all__ = [
    "Config",
    "GetOptions",
    "GetReport",
    "Link",
    "MeshError",
    "Node",
    "PutOptions",
    "PutReport",
    "WeakError",
    "__version__",
    "load_config",
    "open_node",
]

_HOME_OF = {
    "Config": ".config",
    "GetOptions": ".node.transfer",
    "GetReport": ".node.transfer",
    "Link": ".node.content",
    "MeshError": ".errors",
    "Node": ".node.node",
    "PutOptions": ".node.transfer",
    "PutReport": ".node.transfer",
    "WeakError": ".errors",
    "load_config": ".config",
    "open_node": ".node.node",
}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home, __name__), name)
