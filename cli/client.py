"""What the commands ask a node through, whichever node it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import ApiUnavailableError

JsonObject = dict[str, object]
OnEvent = Callable[[JsonObject], None]


class ByteSource(Protocol):
    """Bytes to put, from a place that may make one wait."""

    def read(self, size: int, /) -> bytes:
        """What is there now, up to `size` bytes; b"" only at the end."""
        ...


class Client(Protocol):
    """A node that does what it is asked: one running here (`HttpClient`) or one in this process.

    All methods raise the `MeshError`s of the operation, and `KeyboardInterrupt` after what was
    under way has been cancelled and cleaned up.
    """

    def call(self, verb: str, request: JsonObject, on_event: OnEvent | None = None) -> JsonObject:
        """One operation of `node.api.operations`."""
        ...

    def put_stream(self, request: JsonObject, source: ByteSource, on_event: OnEvent) -> JsonObject:
        """Put what `source` gives until its end."""
        ...

    def peer_names(self) -> dict[str, str]:
        """What peers call themselves, by peer id; empty where that is not known."""
        ...

    def cat(self, request: JsonObject, write: Callable[[bytes], object]) -> int:
        """Give the bytes to `write`, in order; returns their number."""
        ...


class NobodyThereError(ApiUnavailableError):
    """No process listens on the socket: no node runs here."""
