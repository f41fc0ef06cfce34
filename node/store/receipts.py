"""Receipts: what peers have signed that they keep for us.

They tell the next put of the same content what need not be sent again, and an audit whom to ask for
what. A row is only ever evidence, never the promise itself (that is the peer's), so a write need
not wait for the disk: what a power cut takes is asked for once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .holds import Hold, upsert_holds
from .protocol import Digest
from .tables import Table

_IN_CLAUSE = 500


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """`holder` signed that it keeps `digest` from `issued` until `until` (Unix seconds, its
    clock)."""

    digest: Digest
    holder: bytes
    size: int
    issued: int
    until: int
    signature: bytes


class ReceiptTable(Table):
    """The `receipts` table: one row for every chunk and holder, the newest."""

    async def keep(self, rows: Sequence[ReceiptRow], holds: Sequence[Hold] = ()) -> None:
        """Insert or replace rows, and add holds, in one transaction. It survives this process, and
        a power cut when anything durable was written after it."""

        def work() -> None:
            with self._database.write() as db:
                db.executemany(
                    "INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (row.digest, row.holder, row.size, row.issued, row.until, row.signature)
                        for row in rows
                    ],
                )
                upsert_holds(db, holds)

        await self._in_thread(work)

    async def of(self, digests: Sequence[Digest], now: float) -> dict[Digest, list[ReceiptRow]]:
        """Receipts for those of `digests` that have any which last beyond `now` (Unix seconds)."""

        def work() -> dict[Digest, list[ReceiptRow]]:
            found: dict[Digest, list[ReceiptRow]] = {}
            with self._database.read() as db:
                for start in range(0, len(digests), _IN_CLAUSE):
                    some = digests[start : start + _IN_CLAUSE]
                    marks = ",".join("?" * len(some))
                    rows = db.execute(
                        f"SELECT * FROM receipts WHERE digest IN ({marks}) AND until > ?",
                        (*some, now),
                    )
                    for row in rows:
                        receipt = ReceiptRow(*row)
                        found.setdefault(receipt.digest, []).append(receipt)
            return found

        return await self._in_thread(work)

    async def forget(self, holder: bytes, digests: Sequence[Digest]) -> None:
        """`holder` does not keep these, whatever it signed."""

        def work() -> None:
            with self._database.write() as db:
                db.executemany(
                    "DELETE FROM receipts WHERE digest = ? AND holder = ?",
                    [(digest, holder) for digest in digests],
                )

        await self._in_thread(work)

    async def expire(self, now: float) -> int:
        """Forget receipts that ended at or before `now` (Unix seconds); returns how many."""

        def work() -> int:
            with self._database.write() as db:
                return db.execute("DELETE FROM receipts WHERE until <= ?", (now,)).rowcount

        return await self._in_thread(work)
