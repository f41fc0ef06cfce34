"""The operations a client can ask of a node, and the HTTP API on a Unix socket that offers them.

`operations` holds one coroutine per verb; the routes and the command line's embedded node call the
same ones. Knows the node only through `NodeFace`. Names are imported on first use: the command
line shares `text_paths` and `error_json` with this room and must not load the web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .face import NodeFace
    from .server import serve_api

__all__ = ["NodeFace", "serve_api"]

_HOME_OF = {"NodeFace": ".face", "serve_api": ".server"}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home, __name__), name)
