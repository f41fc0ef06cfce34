"""Why a chunk is kept: who was promised it, for which content, until when.

A chunk has any number of holds (digest, owner, root): the node's own puts hold it for the root of
their link, a peer's PUT holds it for that peer (root empty: what it belongs to is the peer's
affair). What has no hold left may go; so a hold is durable before its promise is given.

A put that is not complete holds what it has stored under the root `UNFINISHED`, for a while.

Beside it `releases`, what follows from a dropped hold and is still to be done: telling peers that
we no longer want a chunk, deleting a chunk here that nobody holds. It is noted in the transaction
that drops the hold, so no crash leaves a chunk behind that nobody can remove any more.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from .protocol import Digest
from .tables import Table

NO_ROOT = b""
UNFINISHED = b"\x00unfinished"
"""The root of what belongs to no link yet: chunks of puts that run or have broken off."""
UNKNOWN_OWNER = b""
"""Holds what was found in the segments after the table of holds was lost: see `opening`."""
ALL_PEERS = b""
"""In `releases`: no peer has been told yet."""
HERE = b"\x00"
"""In `releases`: to be deleted from this node, unless somebody holds it by then."""

Hold = tuple[Digest, bytes, bytes, float]
"""digest, owner, root, until (seconds since the epoch)."""


@dataclass(frozen=True, slots=True)
class Letting:
    """What dropping an owner's holds for one root would come to."""

    held: tuple[Digest, ...]
    """Chunks the owner holds for that root."""
    unowned: tuple[Digest, ...]
    """Of these, those the owner holds for no other root."""
    free: tuple[Digest, ...]
    """Of these, those nobody else holds either."""


class HoldTable(Table):
    """The `holds` and `releases` tables. Callers order their calls: see `keeper.promises`."""

    async def add_many(self, rows: Sequence[Hold]) -> None:
        """Add holds in one transaction; durable when this returns. None is ever shortened."""

        def work() -> None:
            with self._database.write(durable=True) as db:
                upsert_holds(db, rows)

        await self._in_thread(work)

    async def add_present(self, rows: Sequence[Hold]) -> set[Digest]:
        """As `add_many`, but only for chunks that are in the store; returns which those are.

        Looking and writing are one transaction: what is removed, is removed before or after both.
        """

        def work() -> set[Digest]:
            with self._database.write(durable=True) as db:
                here = {
                    digest
                    for digest in {row[0] for row in rows}
                    if db.execute("SELECT 1 FROM chunks WHERE digest = ?", (digest,)).fetchone()
                }
                upsert_holds(db, [row for row in rows if row[0] in here])
            return here

        return await self._in_thread(work)

    async def complete(self, owner: bytes, digests: Iterable[Digest], root: bytes) -> None:
        """A put is complete: hold its chunks for its root, for good, and no longer as unfinished.
        Durable when this returns."""
        listed = list(digests)

        def work() -> None:
            with self._database.write(durable=True) as db:
                upsert_holds(db, [(digest, owner, root, math.inf) for digest in listed])
                db.executemany(
                    "DELETE FROM holds WHERE digest = ? AND owner = ? AND root = ?",
                    [(digest, owner, UNFINISHED) for digest in listed],
                )

        await self._in_thread(work)

    async def overdue(self, owner: bytes, now: float, limit: int) -> list[Digest]:
        """Up to `limit` chunks that `owner` held as unfinished until before `now`."""

        def work() -> list[Digest]:
            with self._database.read() as db:
                found = db.execute(
                    "SELECT digest FROM holds WHERE owner = ? AND root = ? AND until < ? LIMIT ?",
                    (owner, UNFINISHED, now, limit),
                )
                return [digest for (digest,) in found]

        return await self._in_thread(work)

    async def adopt_unheld(
        self, owner: bytes, until: float, after: Digest, count: int
    ) -> Digest | None:
        """Have `owner` hold, as unfinished, whatever nobody holds among the next `count` chunks
        after `after`. Returns the last chunk looked at, or None when there were no more."""

        def work() -> Digest | None:
            with self._database.read() as db:
                rows = db.execute(
                    "SELECT digest, NOT EXISTS (SELECT 1 FROM holds h WHERE h.digest = c.digest)"
                    " FROM chunks c WHERE digest > ? ORDER BY digest LIMIT ?",
                    (after, count),
                ).fetchall()
            unheld = [(digest, owner, UNFINISHED, until) for digest, free in rows if free]
            if unheld:
                with self._database.write() as db:
                    upsert_holds(db, unheld)
            return rows[-1][0] if len(rows) == count else None

        return await self._in_thread(work)

    async def add(
        self, owner: bytes, digests: Iterable[Digest], until: float, *, root: bytes = NO_ROOT
    ) -> None:
        """Hold chunks for `owner` until a Unix time."""
        await self.add_many([(digest, owner, root, until) for digest in digests])

    async def held_for(self, owner: bytes, root: bytes) -> list[Digest]:
        """Every chunk `owner` holds for `root`."""

        def work() -> list[Digest]:
            with self._database.read() as db:
                found = db.execute(
                    "SELECT digest FROM holds WHERE owner = ? AND root = ?", (owner, root)
                )
                return [digest for (digest,) in found]

        return await self._in_thread(work)

    async def letting(
        self, owner: bytes, digests: Sequence[Digest], *, root: bytes = NO_ROOT
    ) -> Letting:
        """What `drop` with the same arguments would come to; changes nothing."""
        return await self._in_thread(partial(self._letting, owner, digests, root))

    def _letting(self, owner: bytes, digests: Sequence[Digest], root: bytes) -> Letting:
        held: list[Digest] = []
        unowned: list[Digest] = []
        free: list[Digest] = []
        with self._database.read() as db:
            for digest in dict.fromkeys(digests):
                holds = db.execute(
                    "SELECT owner, root FROM holds WHERE digest = ?", (digest,)
                ).fetchall()
                if (owner, root) not in holds:
                    continue
                held.append(digest)
                others = [hold for hold in holds if hold != (owner, root)]
                if all(other != owner for other, _ in others):
                    unowned.append(digest)
                if not others:
                    free.append(digest)
        return Letting(tuple(held), tuple(unowned), tuple(free))

    async def drop(
        self,
        owner: bytes,
        digests: Sequence[Digest],
        *,
        root: bytes = NO_ROOT,
        release: Sequence[Digest] = (),
        free: Sequence[Digest] = (),
        until: float = math.inf,
    ) -> None:
        """Let go of `owner`'s holds for `root`; note in the same transaction that peers are to be
        told about `release` (until a Unix time) and that `free` is to be deleted here."""

        def work() -> None:
            with self._database.write(durable=True) as db:
                db.executemany(
                    "DELETE FROM holds WHERE digest = ? AND owner = ? AND root = ?",
                    [(digest, owner, root) for digest in digests],
                )
                db.executemany(
                    "INSERT OR REPLACE INTO releases VALUES (?, ?, ?)",
                    [(digest, ALL_PEERS, until) for digest in release]
                    + [(digest, HERE, math.inf) for digest in free],
                )

        await self._in_thread(work)

    async def deletable(self, limit: int) -> list[Digest]:
        """Up to `limit` chunks that are to be deleted here; those held again are forgotten."""

        def work() -> list[Digest]:
            with self._database.write() as db:
                db.execute(
                    "DELETE FROM releases WHERE peer = ? AND digest IN (SELECT digest FROM holds)",
                    (HERE,),
                )
                found = db.execute(
                    "SELECT digest FROM releases WHERE peer = ? LIMIT ?", (HERE, limit)
                )
                return [digest for (digest,) in found]

        return await self._in_thread(work)

    async def releases(self, owner: bytes, peer: bytes, limit: int, now: float) -> list[Digest]:
        """Up to `limit` chunks that `peer` is to be told about, and that `owner` has not come to
        hold again meanwhile. What is no longer to be told is forgotten."""

        def work() -> list[Digest]:
            with self._database.write() as db:
                db.execute(
                    "DELETE FROM releases WHERE peer = ? AND (until < ?"
                    " OR digest IN (SELECT digest FROM holds WHERE owner = ?))",
                    (peer, now, owner),
                )
                found = db.execute(
                    "SELECT digest FROM releases WHERE peer = ? LIMIT ?", (peer, limit)
                )
                return [digest for (digest,) in found]

        return await self._in_thread(work)

    async def told(
        self, digests: Sequence[Digest], peer: bytes, *, owed: Iterable[bytes] = ()
    ) -> None:
        """`peer` (or `ALL_PEERS`, or `HERE`) is done with chunks; the peers in `owed` are not.

        Receipts of those that are done go with it: they no longer keep the chunks for us.
        """
        spared = frozenset(owed)
        rows = [(digest, other, digest) for other in spared for digest in digests]

        def work() -> None:
            with self._database.write(durable=True) as db:
                db.executemany(
                    "INSERT OR REPLACE INTO releases SELECT ?, ?, until FROM releases"
                    " WHERE digest = ? AND peer = x''",
                    rows,
                )
                db.executemany(
                    "DELETE FROM releases WHERE digest = ? AND peer = ?",
                    [(digest, peer) for digest in digests],
                )
                _drop_receipts(db, digests, peer, spared)

        await self._in_thread(work)

    async def owed_peers(self) -> list[bytes]:
        """Peers, each by name, that still have to be told about something."""

        def work() -> list[bytes]:
            with self._database.read() as db:
                found = db.execute(
                    "SELECT DISTINCT peer FROM releases WHERE peer NOT IN (?, ?)", (ALL_PEERS, HERE)
                )
                return [peer for (peer,) in found]

        return await self._in_thread(work)


def upsert_holds(db: sqlite3.Connection, rows: Iterable[Hold]) -> None:
    """Add holds inside a transaction; none is ever shortened."""
    db.executemany(
        "INSERT INTO holds VALUES (?, ?, ?, ?) ON CONFLICT (digest, owner, root)"
        " DO UPDATE SET until = max(until, excluded.until)",
        rows,
    )


def _drop_receipts(
    db: sqlite3.Connection, digests: Sequence[Digest], peer: bytes, spared: frozenset[bytes]
) -> None:
    if peer == HERE:
        return
    which, named = "holder = ?", [peer]
    if peer == ALL_PEERS:
        which, named = f"holder NOT IN ({','.join('?' * len(spared))})", list(spared)
    db.executemany(
        f"DELETE FROM receipts WHERE digest = ? AND {which}",
        [(digest, *named) for digest in digests],
    )
