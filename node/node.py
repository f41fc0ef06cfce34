"""What a running node can be asked for. `assembly.py` starts and stops it.

The public Python API: `async with meshnode.open_node(config) as node: ...`.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog
import trio

from .. import __version__
from ..config import Config
from ..dht.peer_id import PeerId
from ..errors import MeshError, TransferError, WeakError
from .allocator import trim
from .assembly import Parts, open_parts
from .content import DirectoryManifest, FileManifest, Link
from .exchange import Pipe
from .keeper import CatalogueEntry
from .status import FlowStatus, NodeStatus, PeerStatus, RemoveReport
from .transfer import (
    GetOptions,
    GetReport,
    Getter,
    ProgressSink,
    PutOptions,
    PutReport,
    Putter,
    Source,
    SourceReport,
    TransferContext,
    ignore_events,
)
from .transfer.explain import Explained
from .transfer.trace_log import TRACES, TraceLog

log = structlog.get_logger(__name__)

_READY_WITHIN_SECS = 10.0
_HAND_OVER_SECS = 2.0


class Node:
    """A running node; made by `open_node`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started = time.monotonic()
        self._stop_requested = trio.Event()
        self._traces = TraceLog(parts.store.key_value(TRACES))
        context = TransferContext(
            store=parts.store.chunks,
            exchange=parts.exchange,
            dht=parts.dht,
            membership=parts.members,
            self_id=parts.identity.peer_id,
            config=parts.config,
            convergence_secret=parts.mesh.convergence_secret,
            zone=parts.config.node.zone,
            journal=parts.journal,
            search=parts.seeker,
            traces=self._traces,
        )
        self._putter = Putter(context)
        self._getter = Getter(context)

    @property
    def config(self) -> Config:
        return self._parts.config

    @property
    def peer_id(self) -> PeerId:
        return self._parts.identity.peer_id

    def addresses(self) -> list[str]:
        """Our own multiaddrs, each ending in `/p2p/ID`: what others can be given."""
        return [f"{address}/p2p/{self.peer_id}" for address in self._parts.host.addresses()]

    # --- content ------------------------------------------------------------------------------

    async def put(
        self,
        path: str | Path,
        options: PutOptions | None = None,
        progress: ProgressSink = ignore_events,
    ) -> Link:
        """Put one file or folder; the link to it, when all wanted copies are acknowledged.

        Raises:
            WeakError: it is durable here, with fewer copies than wanted; has `.link`, `.report`.
            MeshError: it could not be put, or not all of a folder could.
        """
        report = await self.put_all([Path(path)], options, progress)
        source = report.sources[0]
        if source.outcome == "stored" and source.link is not None:
            return source.link
        if source.outcome == "weak":
            raise WeakError(
                f"{source.name} has {source.copies} of {source.wanted_copies} copies.",
                link=source.link,
                report=report,
                hint="Start more nodes and put it again, or lower storage.replication.",
            )
        reason = source.error or f"{len(source.failures)} entries could not be read."
        raise TransferError(f"{source.name} was not put as a whole: {reason}", hint=source.hint)

    async def put_all(
        self,
        sources: Sequence[Source],
        options: PutOptions | None = None,
        progress: ProgressSink = ignore_events,
    ) -> PutReport:
        """Put several sources, a link for each; the report says what became of every one."""
        await self._parts.members.refresh_connected()
        async with self._parts.promises.putting():
            report = await self._putter.put(sources, options or PutOptions(), progress)
            kept = [await self._remember(source) for source in report.sources]
        await trio.to_thread.run_sync(trim)
        return replace(report, sources=tuple(kept))

    async def _remember(self, source: SourceReport) -> SourceReport:
        """Hold what was put; a source that cannot be held has failed, the others have not."""
        if source.link is None:
            return source
        entry = CatalogueEntry(
            link=source.link,
            name=source.name,
            kind=source.kind,
            size=source.size,
            chunks=source.chunks,
            outcome=source.outcome,
            copies=source.copies,
            put_at=time.time(),
        )
        try:
            await self._parts.promises.hold_link(entry, source.placements.keys())
        except MeshError as error:
            return replace(
                source,
                outcome="failed",
                link=None,
                error=error.message,
                hint=error.hint,
                error_code=error.code,
                error_exit_code=error.exit_code,
            )
        return source

    async def get(
        self,
        link: Link | str,
        destination: str | Path,
        options: GetOptions | None = None,
        progress: ProgressSink = ignore_events,
    ) -> GetReport:
        """Write what `link` names to `destination`: all of it, verified, or nothing.

        Raises:
            NotFoundError, WrongKeyError, LinkError, DestinationError, TransferError: see `Getter`.
        """
        report = await self._getter.get(
            _as_link(link), Path(destination), options or GetOptions(), progress
        )
        await trio.to_thread.run_sync(trim)
        return report

    def stream(
        self,
        link: Link | str,
        path: bytes | None = None,
        offset: int = 0,
        length: int | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of one file in order, as they arrive; leaving the block ends the fetching."""
        return self._getter.stream(_as_link(link), path, offset, length)

    async def manifest(self, link: Link | str) -> FileManifest | DirectoryManifest:
        """What `link` leads to, without its content."""
        return await self._getter.open(_as_link(link))

    async def catalogue(self) -> list[CatalogueEntry]:
        """What was put on this node and not removed, newest first."""
        return await self._parts.catalogue.entries()

    async def remove(self, link: Link | str) -> RemoveReport:
        """Take back what was put here: our copy, and the copies peers keep for us.

        A chunk that other content shares, or that a peer was promised, stays.

        Raises:
            NotFoundError: the link was not put on this node.
        """
        dropped = await self._parts.promises.drop_link(_as_link(link).digest)
        done = await self._parts.releaser.round()
        return RemoveReport(
            chunks=dropped.chunks,
            removed_here=0 if done.deferred else dropped.free,
            removed_bytes=0 if done.deferred else dropped.free_bytes,
            released=done.released,
            unreachable=tuple(sorted(done.unreachable)),
            deferred=done.deferred,
        )

    # --- observation --------------------------------------------------------------------------

    async def transfers(self, root: bytes | None = None, count: int = 1) -> list[Explained]:
        """The last transfers of this node, newest first, and what decided how they went.

        Args:
            root: digest that names a link: only transfers of that link.
        """
        found = await self._traces.latest(count, root)
        known = {part.peer for trace in found for part in trace.peers}
        names = {peer: self._name_of(peer) for peer in known}
        return [Explained(trace, {p: n for p, n in names.items() if n}) for trace in found]

    def _name_of(self, peer: PeerId) -> str:
        info, said = self._parts.members.info(peer), self._parts.host.member_info(peer)
        return info.name if info else (said.name if said else "")

    async def status(self) -> NodeStatus:
        """Who and where this node is, what it holds, whom it sees."""
        parts, limits = self._parts, self._parts.traffic.limits
        return NodeStatus(
            name=parts.config.node.name,
            zone=parts.config.node.zone,
            peer_id=self.peer_id,
            mesh=parts.mesh.name,
            mesh_id=parts.mesh.id,
            open_mesh=parts.mesh.open,
            addresses=tuple(self.addresses()),
            version=__version__,
            pid=os.getpid(),
            uptime=time.monotonic() - self._started,
            ready=parts.bootstrap.attempted.is_set(),
            connected_peers=len(parts.members.members()),
            known_peers=len(parts.dht.peers()),
            announce_lag=parts.announcer.lag,
            keys_pending=parts.dht.keys_pending,
            announce_lag_seconds=parts.dht.announce_lag,
            store=await parts.store.chunks.stats(),
            store_rebuilt=parts.store.rebuilt,
            counters={**parts.dht.stats(), **parts.host.stats()},
            upload=_flow(parts.traffic.up, limits.upload, limits.per_peer_upload),
            download=_flow(parts.traffic.down, limits.download, limits.per_peer_download),
        )

    async def peers(self) -> list[PeerStatus]:
        """Every peer this node knows, connected ones first."""
        await trio.lowlevel.checkpoint()
        known = {entry.peer: entry for entry in self._parts.dht.peers()}
        connected = self._parts.host.connected_peers()
        everyone = sorted({*known, *connected}, key=lambda peer: (peer not in connected, str(peer)))
        statuses = []
        for peer in everyone:
            entry = known.get(peer)
            info = self._parts.members.info(peer)
            said = self._parts.host.member_info(peer)
            stats = self._parts.exchange.stats[peer] if peer in self._stats_peers() else None
            statuses.append(
                PeerStatus(
                    peer=peer,
                    name=info.name if info else (said.name if said else ""),
                    zone=info.zone if info else (said.zone if said else ""),
                    version=info.version if info else "",
                    connected=peer in connected,
                    addresses=tuple(self._parts.host.known_addresses(peer)),
                    rtt=entry.rtt if entry else None,
                    available_bytes=info.available_bytes if info else None,
                    throughput=stats.throughput if stats else None,
                    success_rate=stats.success_rate if stats else None,
                    breaker=stats.breaker.value if stats else "",
                    last_error=stats.last_error if stats else "",
                )
            )
        return statuses

    def _stats_peers(self) -> set[PeerId]:
        return set(self._parts.exchange.stats)

    # --- life ---------------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Wait until the first attempt to find the mesh has ended (bounded; it may have failed)."""
        with trio.move_on_after(_READY_WITHIN_SECS):
            await self._parts.bootstrap.attempted.wait()
            await self._parts.members.refresh_connected()

    def request_stop(self) -> None:
        """Ask whoever runs this node to end it; see `wait_stop_requested`."""
        self._stop_requested.set()

    async def wait_stop_requested(self) -> None:
        await self._stop_requested.wait()


def _flow(pipe: Pipe, limit: int, per_peer: int) -> FlowStatus:
    return FlowStatus(limit, per_peer, pipe.rate, pipe.total)


def _as_link(link: Link | str) -> Link:
    return Link.parse(link) if isinstance(link, str) else link


@asynccontextmanager
async def open_node(config: Config, *, serve_peers: bool = True) -> AsyncIterator[Node]:
    """Run a node for the length of the block.

    Args:
        config: from `load_config`.
        serve_peers: listen for connections; off for a node that lives for one command.

    Raises:
        MembershipError: this home is in no mesh yet.
        StoreLockedError: another process runs on this data directory.
        RefusedError: a port is taken.
        StoreError: the store cannot be opened.
    """
    async with open_parts(config, serve_peers=serve_peers) as parts:
        yield Node(parts)
        if serve_peers:
            await _hand_over(parts)


async def _hand_over(parts: Parts) -> None:
    """In an orderly end: what this node keeps for the DHT moves to those who keep it from now on.

    Waits for `_HAND_OVER_SECS` at most, and for nothing in a mesh where everybody keeps everything.
    """
    report = await parts.dht.hand_over(_HAND_OVER_SECS)
    if report.due:
        log.info(
            "handed_over",
            due=report.due,
            records=report.records,
            values=report.values,
            peers=report.peers,
            failed=report.failed,
            seconds=round(report.seconds, 2),
            complete=report.complete,
        )
