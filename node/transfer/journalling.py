"""Writes the journal of a put down while the put runs, and once more at its end."""

from __future__ import annotations

import structlog
import trio

from ...errors import MeshError
from .context import PutJournal
from .failures import reason_of
from .tracing import Tracer

log = structlog.get_logger(__name__)

FLUSH_EVERY_SECONDS = 1.0
_LAST_WITHIN_SECONDS = 5.0


class JournalWriter:
    """`run` is its one task. A journal that cannot be written costs a later put repeated work, and
    this one nothing."""

    def __init__(self, journal: PutJournal, tracer: Tracer) -> None:
        self._journal = journal
        self._tracer = tracer
        self._scope = trio.CancelScope()
        self._failing = False

    async def run(self) -> None:
        """Write now and then, until `stop`."""
        with self._scope:
            while True:
                await trio.sleep(FLUSH_EVERY_SECONDS)
                await self._flush()

    def stop(self) -> None:
        self._scope.cancel()

    async def finish(self) -> None:
        """Write the rest, also when the put was cancelled."""
        with trio.move_on_after(_LAST_WITHIN_SECONDS, shield=True):
            await self._flush()

    async def _flush(self) -> None:
        try:
            await self._journal.flush()
        except MeshError as error:
            if not self._failing:
                log.warning("put_journal_failed", error=str(error))
                self._tracer.note(f"the journal could not be written: {reason_of(error)}")
            self._failing = True
        else:
            self._failing = False
