"""The traces of the last transfers of this node, kept in its database."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import structlog

from ...errors import FormatError, MeshError
from .trace import Trace
from .trace_format import decode_trace, encode_trace

log = structlog.get_logger(__name__)

TRACES = "transfers"
"""The namespace of the table they are kept in."""
KEPT = 200
_TIME_BYTES = 8
_RANDOM_BYTES = 4


class TraceTable(Protocol):
    """`store.KeyValue`, as far as it is used here."""

    async def note(
        self, items: Sequence[tuple[bytes, bytes]], gone: Sequence[bytes] = ()
    ) -> None: ...

    def items(self) -> AsyncIterator[tuple[bytes, bytes]]: ...


class TraceLog:
    """The newest `KEPT` traces. Implements `TraceKeeper`."""

    def __init__(self, table: TraceTable) -> None:
        self._table = table
        self._keys: list[bytes] | None = None
        """Oldest first; None: not looked at yet."""

    async def keep(self, trace: Trace) -> None:
        """Write it down, in place of the oldest. Never fails: what goes wrong is logged."""
        # By when it ended: what is newest is what a user asks about.
        ended = max(int((trace.began + trace.seconds) * 1e6), 0)
        key = ended.to_bytes(_TIME_BYTES, "big") + os.urandom(_RANDOM_BYTES)
        try:
            if self._keys is None:
                self._keys = [key async for key, _ in self._table.items()]
            keys = sorted([*self._keys, key])
            gone = keys[:-KEPT]
            await self._table.note([(key, encode_trace(trace))], gone)
            self._keys = keys[-KEPT:]
        except MeshError as error:
            log.warning("trace_not_kept", kind=trace.kind, error=str(error))

    async def latest(self, count: int, root: bytes | None = None) -> list[Trace]:
        """Up to `count` traces, newest first; only those of the link named `root`, if given.

        Raises:
            StoreError: the database failed.
        """
        found = []
        for data in reversed([value async for _, value in self._table.items()]):
            try:
                trace = decode_trace(data)
            except FormatError as error:
                log.warning("trace_unreadable", error=str(error))
                continue
            if root is None or trace.is_of(root):
                found.append(trace)
                if len(found) == count:
                    break
        return found
