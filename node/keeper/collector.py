"""Lets go of what nobody needs: chunks of puts that broke off and were not taken up again.

Such chunks are held as unfinished until some time after their put last touched them (see
`put_journal`); what is held by nobody at all (a crash took the note, or a peer's put broke off
between chunk and promise) is given the same time from when it is found. Then they go like the
chunks of a link that is removed: deleted here, released at the peers. Never while a put runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import trio

from ...errors import MeshError
from ..exchange import Lane
from ..store import Store
from .promises import Promises
from .put_journal import KEEP_UNFINISHED_SECS
from .releaser import Releaser

log = structlog.get_logger(__name__)

FIRST_AFTER_SECS = 60.0
"""A node that lives for one command has other things to do."""
EVERY_SECS = 600.0
SWEEP_EVERY_SECS = 6 * 3600.0
_SWEEP_AT_ONCE = 2000
_SWEEP_PAUSE_SECS = 0.05


class Collector:
    """`run` is its one task."""

    def __init__(
        self,
        promises: Promises,
        releaser: Releaser,
        store: Store,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._promises = promises
        self._releaser = releaser
        self._store = store
        self._wall = wall
        self.collected = 0
        """Chunks let go of since the start."""

    async def run(self) -> None:
        """Collect now and then, until cancelled."""
        await trio.sleep(FIRST_AFTER_SECS)
        swept_at = float("-inf")
        while True:
            try:
                if trio.current_time() - swept_at >= SWEEP_EVERY_SECS:
                    await self.sweep()
                    swept_at = trio.current_time()
                await self.collect()
            except MeshError as error:
                log.warning("collect_failed", error=str(error), retry_secs=EVERY_SECS)
            await trio.sleep(EVERY_SECS)

    async def collect(self) -> int:
        """Let go of what has waited long enough; returns how many chunks that were.

        Raises:
            StoreError: the local store failed.
        """
        count = 0
        while found := await self._promises.drop_overdue(self._wall()):
            count += found
        if count:
            self.collected += count
            log.info("unfinished_puts_collected", chunks=count)
            await self._releaser.round(Lane.BACKGROUND)
        return count

    async def sweep(self) -> None:
        """Find chunks that nobody holds, and set the time after which they go.

        Raises:
            StoreError: the local store failed.
        """
        now = self._wall()
        owner, until = self._promises.self_id, now + KEEP_UNFINISHED_SECS
        after: bytes | None = b""
        while after is not None:
            after = await self._store.holds.adopt_unheld(owner, until, after, _SWEEP_AT_ONCE)
            await trio.sleep(_SWEEP_PAUSE_SECS)
        await self._store.receipts.expire(now)
