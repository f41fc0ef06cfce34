"""Who holds which chunk: asked of the DHT in batches, and of the live members for the rest."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ...dht.peer_id import PeerId
from ...errors import MeshError
from ..store.protocol import Digest
from .context import TransferContext
from .failures import reason_of, task_group

_GRACE_SECONDS = 0.1
"""How much longer slow members may answer once every chunk has a holder."""
_MAX_MEMBERS_ASKED = 256
_HAVE_BATCH = 4096
_MAX_HOLDERS = 16
"""Tried per chunk: of a list of any length, which may hold invented ones, the likely live first."""

Holders = dict[Digest, list[PeerId]]


class Finder:
    """Finds holders for one transfer; remembers who was asked, for the error if nobody has it."""

    def __init__(self, ctx: TransferContext) -> None:
        self._ctx = ctx
        self.asked: set[PeerId] = set()
        self.problems: dict[PeerId, str] = {}
        self.dht_problem = ""

    async def find(self, digests: Sequence[Digest]) -> Holders:
        """Holders of each chunk, this node left out; the members are asked only about chunks the
        DHT knows nobody for."""
        found = await self._from_records(digests)
        unknown = [digest for digest in digests if not found[digest]]
        if unknown:
            await self._from_members(unknown, found)
        return found

    async def find_again(self, digests: Sequence[Digest]) -> Holders:
        """Holders as they are now, from the DHT and from every live member.

        Where all that the DHT knows of a chunk were not where they should be, and the mesh is
        being asked where they are, this waits for that.
        """
        found = await self._from_records(digests)
        seeks = self._ctx.search.seeks
        lost = [holders for holders in found.values() if holders and all(map(seeks, holders))]
        await self._ctx.search.sought({peer for holders in lost for peer in holders})
        await self._from_members(digests, found)
        return found

    async def _from_records(self, digests: Sequence[Digest]) -> Holders:
        try:
            records = await self._ctx.dht.find_chunks(digests)
        except MeshError as error:
            self.dht_problem = reason_of(error)
            records = {}
        found: Holders = {}
        for digest in digests:
            peers = dict.fromkeys(record.peer for record in records.get(digest, ()))
            peers.pop(self._ctx.self_id, None)
            found[digest] = list(peers)[:_MAX_HOLDERS]
        return found

    async def _from_members(self, digests: Sequence[Digest], found: Holders) -> None:
        members = [member.peer for member in self._ctx.membership.members()][:_MAX_MEMBERS_ASKED]
        before = {digest: len(found[digest]) for digest in digests}
        timeout = self._ctx.chunk_settings.peer_response_timeout_secs
        with trio.move_on_after(timeout) as patience:
            async with task_group() as tasks:
                for peer in members:
                    tasks.start_soon(self._ask, peer, digests, before, found, patience)

    async def _ask(
        self,
        peer: PeerId,
        digests: Sequence[Digest],
        before: dict[Digest, int],
        found: Holders,
        patience: trio.CancelScope,
    ) -> None:
        self.asked.add(peer)
        for start in range(0, len(digests), _HAVE_BATCH):
            batch = digests[start : start + _HAVE_BATCH]
            try:
                flags = await self._ctx.exchange.have(peer, batch)
            except MeshError as error:
                self.problems[peer] = reason_of(error)
                return
            for digest, held in zip(batch, flags, strict=True):
                if held and peer not in found[digest]:
                    found[digest].append(peer)
        if all(len(found[digest]) > count for digest, count in before.items()):
            patience.deadline = min(patience.deadline, trio.current_time() + _GRACE_SECONDS)
