"""One source of a put, from looking at it to its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from ...dht.peer_id import PeerId
from ...errors import InputError, MeshError, UsageError
from ..content import ChunkerProfile, EncodedManifest, Manifest, Packer, encode_manifest
from ..exchange import Lane
from ..store.protocol import Digest
from .events import FileDone, ProgressMeter, Started
from .failures import reason_of
from .manifests import directory_manifest, file_manifest
from .pipeline import Ingested, Pipeline, digests_of
from .reading import Draft, FileCut, FilesReader
from .report import Kind, Outcome, SourceReport
from .sampling import choose_samples, read_back
from .source import Found, Source, StreamSource, look_at

_T = TypeVar("_T")
_SAMPLE_ROUNDS = 2
_STREAM_MODE = 0o644
_MAX_NAME_BYTES = 255


class SourcePut:
    """Puts one source through the shared stages of a put."""

    def __init__(
        self, pipeline: Pipeline, source: Source, profile: ChunkerProfile, copies: int
    ) -> None:
        self._pipeline = pipeline
        self._ctx = pipeline.ctx
        self._source = source
        self._profile = profile
        self._copies = copies
        self._warnings: list[str] = []
        self._sampled = 0
        self._unconfirmed: dict[PeerId, str] = {}
        self._kind: Kind = "stream" if isinstance(source, StreamSource) else "file"
        self.meter: ProgressMeter = pipeline.meter

    async def run(self) -> SourceReport:
        """Put it.

        Raises:
            InputError: there is nothing to put, or the one file cannot be read as a whole.
            QuotaError, StoreError: this node cannot keep it.
            FormatError: a folder too large for one manifest.
        """
        began = trio.current_time()
        if isinstance(self._source, StreamSource):
            manifest, ingested = await self._stream(self._source)
        else:
            paths = self._ctx.config.paths
            own = (paths.home, paths.data_dir)
            found = await self._in_thread(partial(look_at, self._source, own))
            for left_out in found.left_out:
                shown = left_out.decode("utf-8", "backslashreplace")
                self._warnings.append(f"{shown} was left out: it is this node's own folder.")
            self._kind = "folder" if found.is_tree else "file"
            self.meter.tell(Started(os.fsdecode(found.name), found.total_bytes, len(found.files)))
            manifest, ingested = await self._files(found)
        encoded = await self._in_thread(partial(encode_manifest, manifest, self._pipeline.sealer))
        new = await self._pipeline.store([*encoded.nodes, encoded.root])
        ingested.new_chunks += new
        with self._pipeline.tracer.phase("publishing"):
            await self._publish_root(encoded)
        digests = digests_of(ingested.drafts)
        digests.update(node.ref.digest for node in (*encoded.nodes, encoded.root))
        await self._place(digests)
        return self._report(manifest, encoded, ingested, digests, began)

    def failed(self, error: MeshError, seconds: float) -> SourceReport:
        """The report of a source that could not be put."""
        source = self._source
        return SourceReport(
            name=source.name if isinstance(source, StreamSource) else os.fspath(source),
            kind=self._kind,
            outcome="failed",
            link=None,
            wanted_copies=self._copies,
            seconds=seconds,
            error=error.message,
            hint=error.hint,
            error_code=error.code,
            error_exit_code=error.exit_code,
        )

    # --- into the local store -----------------------------------------------------------------

    async def _files(self, found: Found) -> tuple[Manifest, Ingested]:
        pipeline, config = self._pipeline, self._ctx.config.ingest
        packer = None
        if found.is_tree and config.pack_below:
            packer = Packer(pipeline.sealer, self._profile.target)
        below = min(config.pack_below, self._profile.target)
        reader = FilesReader(found.files, self._profile, packer, below)
        for failure in found.failures:
            self.meter.tell(FileDone(failure.shown, "failed", failure.reason))
        ingested = await pipeline.ingest_files(reader)
        if not found.is_tree:
            return self._single(found, ingested), ingested
        ingested.failures += found.failures
        build = partial(directory_manifest, found.name, ingested.drafts, found.nodes)
        return await self._in_thread(build), ingested

    def _single(self, found: Found, ingested: Ingested) -> Manifest:
        if ingested.failures:
            raise InputError(
                f"{self._source} cannot be put: {ingested.failures[0].reason}.",
                hint="Put it again when nobody writes to it, or check that it may be read.",
            )
        return file_manifest(found.name, ingested.drafts[0], str(self._profile))

    async def _stream(self, source: StreamSource) -> tuple[Manifest, Ingested]:
        name = os.fsencode(source.name)
        if b"/" in name or b"\0" in name or name in (b".", b"..") or len(name) > _MAX_NAME_BYTES:
            raise UsageError(
                f"{source.name[:80]!r} cannot be the name of a file.",
                hint="Choose a name without a slash, of at most 255 bytes.",
            )
        self.meter.tell(Started(source.name, None, 1))
        draft = Draft(b"", _STREAM_MODE, 0)
        file = FileCut(draft, self._profile)
        try:
            ingested = await self._pipeline.ingest_stream(source.chunks, file)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise InputError(
                f"The input for {source.name!r} broke off after {draft.size} bytes ({error}).",
                hint="Nothing was published; start it again.",
            ) from error
        return file_manifest(name, draft, str(self._profile)), ingested

    # --- onto other nodes ---------------------------------------------------------------------

    async def _publish_root(self, encoded: EncodedManifest) -> None:
        try:
            root = bytes(encoded.root.data)
            stored = await self._ctx.dht.put_manifest(encoded.link.digest, root)
        except MeshError as error:
            self._warnings.append(f"The DHT did not take the manifest: {reason_of(error)}.")
        else:
            if not stored.stored_on and self._ctx.membership.members():
                self._warnings.append("No other node's DHT keeps the manifest yet.")

    async def _place(self, digests: set[Digest]) -> None:
        """Wait until everything is placed, and look whether it really is."""
        with self._pipeline.tracer.phase("last copies"):
            uploader = self._pipeline.uploader
            await uploader.settle(digests)
            # Who came, or said what it offers, only after its chunks had been given up on.
            late = [digest for digest in digests if uploader.has_newcomers(digest)]
            await self._replace(late, Lane.INTERACTIVE)
        for _ in range(_SAMPLE_ROUNDS):
            lost = await self._sample(digests)
            if not lost:
                return
            await self._replace(lost, Lane.REPAIR)
        # Whoever is found out only now is not counted, and not replaced any more.
        await self._sample(digests)

    async def _sample(self, digests: set[Digest]) -> list[Digest]:
        """Read some copies back. A peer that lacks one is believed about none of them; returns
        the chunks that have fewer copies for it. One that cannot be asked is remembered."""
        uploader = self._pipeline.uploader
        holders = self._holders(digests)
        sizes = {digest: uploader.placement(digest).size for digest in digests}
        samples = choose_samples(holders, sizes, self._ctx.rng)
        with self._pipeline.tracer.phase("confirming"):
            found = await read_back(self._ctx, samples, uploader.patience)
        self._sampled += found.answered
        self._unconfirmed.update(found.unconfirmed)
        for peer in found.confirmed | found.lost.keys():
            self._unconfirmed.pop(peer, None)
        for peer, reason in found.lost.items():
            uploader.give_up(peer, reason)
            signed = [digest for digest, peers in holders.items() if peer in peers]
            await self._ctx.journal.lost(peer, signed)
        gone = found.lost.keys()
        lost = [digest for digest, peers in holders.items() if not gone.isdisjoint(peers)]
        for digest in lost:
            uploader.discount(digest, gone)
        return lost

    async def _replace(self, digests: Sequence[Digest], lane: Lane) -> None:
        for digest in digests:
            data = await self._ctx.store.get(digest)
            await self._pipeline.uploader.replace(digest, data, lane)
        await self._pipeline.uploader.settle(digests)

    def _holders(self, digests: set[Digest]) -> dict[Digest, tuple[PeerId, ...]]:
        placement = self._pipeline.uploader.placement
        return {digest: tuple(placement(digest).holders) for digest in sorted(digests)}

    # --- the report ---------------------------------------------------------------------------

    def _report(
        self,
        manifest: Manifest,
        encoded: EncodedManifest,
        ingested: Ingested,
        digests: set[Digest],
        began: float,
    ) -> SourceReport:
        zones_of = {
            digest: {self._ctx.zone, *self._pipeline.uploader.placement(digest).holders.values()}
            for digest in digests
        }
        holders = self._holders(digests)
        copies = 1 + min(len(peers) for peers in holders.values())
        placements = [self._pipeline.uploader.placement(digest) for digest in digests]
        drafts = ingested.drafts
        return SourceReport(
            name=os.fsdecode(manifest.name),
            kind=self._kind,
            outcome=self._outcome(copies, ingested),
            link=encoded.link,
            digest=drafts[0].digest if self._kind != "folder" else b"",
            size=sum(draft.size for draft in drafts),
            files=len(drafts),
            chunks=len(digests),
            new_chunks=ingested.new_chunks,
            wanted_copies=self._copies,
            copies=copies,
            peers=tuple(sorted({peer for peers in holders.values() for peer in peers})),
            zones=tuple(sorted(set().union(*zones_of.values()))),
            survives_nodes=copies - 1,
            survives_zones=min(len(zones) for zones in zones_of.values()) - 1,
            receipts=sum(len(peers) for peers in holders.values()),
            sampled=self._sampled,
            retries=sum(placement.retries for placement in placements),
            bytes_sent=sum(placement.bytes_sent for placement in placements),
            found_copies=sum(placement.found for placement in placements),
            seconds=trio.current_time() - began,
            failures=tuple(ingested.failures),
            warnings=(*self._warnings, *self._not_confirmed()),
            placements=holders,
        )

    def _not_confirmed(self) -> list[str]:
        return [
            f"Copies on {peer.short} were not confirmed ({reason}); its receipts count."
            for peer, reason in sorted(self._unconfirmed.items())
        ]

    def _outcome(self, copies: int, ingested: Ingested) -> Outcome:
        if ingested.failures:
            return "partial"
        return "stored" if copies >= self._copies else "weak"

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._pipeline.threads)
