"""What puts have got done so far, written down while they run.

For every chunk that a put has stored, a hold that ends after `KEEP_UNFINISHED_SECS` (the put's own
link holds it for good when the put is complete); for every copy a peer has signed for, its receipt.
Whoever puts the same content again finds both, and need not send again what is still there.

Rows are gathered and written about once a second without waiting for the disk. What a crash takes
of them costs repeated work only: chunks are durable before they are noted here, and what a receipt
says is asked for again before it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ...dht.peer_id import PeerId
from ..exchange import Receipt
from ..store import Digest
from ..store.holds import UNFINISHED
from ..store.opening import Store
from ..store.receipts import ReceiptRow

KEEP_UNFINISHED_SECS = 86_400.0
"""How long what an interrupted put has stored waits to be taken up again, here and on peers."""


class PutJournal:
    """One per node; see the module. Implements `transfer.PutJournal`."""

    def __init__(
        self, self_id: PeerId, store: Store, wall: Callable[[], float] = time.time
    ) -> None:
        self._self_id = self_id
        self._store = store
        self._wall = wall
        self._stored: dict[Digest, None] = {}
        self._receipts: list[Receipt] = []

    def stored(self, digests: Sequence[Digest]) -> None:
        """A put needs these chunks, which are durable here."""
        self._stored.update(dict.fromkeys(digests))

    def copied(self, receipt: Receipt) -> None:
        """A peer has signed for a copy; the receipt has been checked."""
        self._receipts.append(receipt)

    async def receipts(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[Receipt]]:
        """Receipts of earlier puts for those of `digests` that have any, and half of whose time is
        still to come: a copy that is about to end is better asked for anew."""
        now = self._wall()
        found = await self._store.receipts.of(digests, now)
        return {
            digest: [
                Receipt(
                    PeerId(row.holder),
                    self._self_id,
                    row.digest,
                    row.size,
                    row.issued,
                    row.until,
                    row.signature,
                )
                for row in rows
                if row.until - now > (row.until - row.issued) / 2
            ]
            for digest, rows in found.items()
        }

    async def lost(self, peer: PeerId, digests: Sequence[Digest]) -> None:
        """`peer` has not got these, whatever it signed."""
        gone = set(digests)
        self._receipts = [
            receipt
            for receipt in self._receipts
            if receipt.holder != peer or receipt.digest not in gone
        ]
        await self._store.receipts.forget(peer, digests)

    async def flush(self) -> None:
        """Write down what has been gathered.

        Raises:
            StoreError, QuotaError: it could not be; it is gathered still.
        """
        stored, self._stored = self._stored, {}
        receipts, self._receipts = self._receipts, []
        if not stored and not receipts:
            return
        until = self._wall() + KEEP_UNFINISHED_SECS
        rows = [
            ReceiptRow(r.digest, bytes(r.holder), r.size, r.issued, r.until, r.signature)
            for r in receipts
        ]
        holds = [(digest, bytes(self._self_id), UNFINISHED, until) for digest in stored]
        try:
            await self._store.receipts.keep(rows, holds)
        except BaseException:
            self._stored = stored | self._stored
            self._receipts = receipts + self._receipts
            raise
