"""Why a chunk is kept: who was promised it, for which content, until when.

A chunk has any number of holds (digest, owner, root): the node's own puts hold it for the root of
their link, a peer's PUT holds it for that peer (root empty: what it belongs to is the peer's
affair). What has no hold left may go; so a hold is durable before its promise is given, and a drop
is durable before anything is deleted for it. A chunk that never had a hold is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from .protocol import Digest
from .tables import Table

NO_ROOT = b""
UNKNOWN_OWNER = b""
"""Holds what was found in the segments after the table of holds was lost: see `opening`."""

Hold = tuple[Digest, bytes, bytes, float]
"""digest, owner, root, until (seconds since the epoch)."""


class HoldTable(Table):
    """The `holds` table."""

    async def add(
        self, owner: bytes, digests: Iterable[Digest], until: float, *, root: bytes = NO_ROOT
    ) -> None:
        """Hold chunks for `owner` until a Unix time; a longer hold is never shortened."""
        await self.add_many([(digest, owner, root, until) for digest in digests])

    async def add_many(self, rows: Sequence[Hold]) -> None:
        """Add holds in one transaction; durable when this returns."""

        def work() -> None:
            with self._database.write(durable=True) as db:
                db.executemany(
                    "INSERT INTO holds VALUES (?, ?, ?, ?) ON CONFLICT (digest, owner, root)"
                    " DO UPDATE SET until = max(until, excluded.until)",
                    rows,
                )

        await self._in_thread(work)

    async def held_for(self, owner: bytes, root: bytes) -> list[Digest]:
        """Every chunk `owner` holds for `root`."""

        def work() -> list[Digest]:
            with self._database.read() as db:
                found = db.execute(
                    "SELECT digest FROM holds WHERE owner = ? AND root = ?", (owner, root)
                )
                return [digest for (digest,) in found]

        return await self._in_thread(work)

    async def drop(
        self, owner: bytes, digests: Sequence[Digest], *, root: bytes = NO_ROOT
    ) -> tuple[list[Digest], list[Digest]]:
        """Let go of `owner`'s holds for `root`; durable when this returns.

        Returns (chunks `owner` holds no more for any root, chunks nobody holds any more); only
        chunks that `owner` did hold for `root` are in either.
        """
        return await self._in_thread(partial(self._drop, owner, digests, root))

    def _drop(
        self, owner: bytes, digests: Sequence[Digest], root: bytes
    ) -> tuple[list[Digest], list[Digest]]:
        unowned: list[Digest] = []
        free: list[Digest] = []
        with self._database.write(durable=True) as db:
            for digest in digests:
                gone = db.execute(
                    "DELETE FROM holds WHERE digest = ? AND owner = ? AND root = ?",
                    (digest, owner, root),
                ).rowcount
                if not gone:
                    continue
                left = db.execute("SELECT owner FROM holds WHERE digest = ?", (digest,)).fetchall()
                if (owner,) not in left:
                    unowned.append(digest)
                if not left:
                    free.append(digest)
        return unowned, free
