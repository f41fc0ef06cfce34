"""What a client can ask of a node: one coroutine per verb, the same with and without HTTP.

A request is a JSON object as the client sent it, read strictly; the result is a JSON object. All
errors are `MeshError`s. Paths are absolute, in the notation of `text_paths`. `emit` is told how
long work gets on: dicts with a "type", at any rate; it must not block. docs/api.md lists requests,
events and results.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

import trio

from ...config import entries
from ...errors import DestinationError, MeshError, NotFoundError, UsageError
from ..content import CHUNKER_KINDS, CompressionMode, Link
from ..transfer import GetOptions, PutOptions, Source, StreamSource, TransferEvent
from .error_json import as_mesh_error, error_to_json
from .face import NodeFace, Transfers
from .fields import Fields
from .listing import describe_link, describe_manifest, is_folder, list_manifest

JsonObject = dict[str, object]
Emit = Callable[[JsonObject], None]

MAX_NAME_CHARS = 255
MAX_REPLICATION = 16
MAX_LINKS = 1000
MAX_TRANSFERS = 200
_EXPLAIN_SECS = 2.0
_COMPRESSIONS: Mapping[str, CompressionMode] = {"auto": "auto", "zstd": "zstd", "none": "none"}


async def put(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{"sources": [path, ...]} -> the report, with an entry for every source.

    Options: "public", "replication", "chunker", "compression".
    """
    fields = Fields(request)
    sources: list[Source] = [Path(path) for path in fields.absolute_paths("sources")]
    options = _put_options(fields)
    fields.done()
    return (await node.put_all(sources, options, _sink(emit))).to_json()


async def put_stream(
    node: NodeFace, request: object, pieces: AsyncIterator[bytes], emit: Emit
) -> JsonObject:
    """{"name"} with the options of `put`, and the bytes to put under that name."""
    fields = Fields(request)
    name = fields.text("name")
    if len(name) > MAX_NAME_CHARS or "/" in name or "\0" in name or name in (".", ".."):
        raise UsageError(f"{name[:80]!r} cannot be the name of a file.", hint="Use a plain name.")
    options = _put_options(fields)
    fields.done()
    return (await node.put_all([StreamSource(name, pieces)], options, _sink(emit))).to_json()


async def get(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{"link", "destination", "path"?, "force"?} -> the report."""
    fields = Fields(request)
    link = _link(fields)
    destination = Path(fields.absolute_path("destination"))
    options = GetOptions(path=fields.inner_path("path"), force=fields.flag("force"))
    fields.done()
    await trio.to_thread.run_sync(_refuse_special_file, destination)
    return (await node.get(link, destination, options, _sink(emit))).to_json()


@asynccontextmanager
async def cat(node: NodeFace, request: object) -> AsyncIterator[AsyncIterator[bytes]]:
    """{"link", "path"?, "offset"?, "length"?} -> the bytes of one file, in order."""
    fields = Fields(request)
    link = _link(fields)
    path = fields.inner_path("path")
    offset = fields.integer("offset") or 0
    length = fields.integer("length")
    fields.done()
    async with AsyncExitStack() as stack:
        try:
            pieces = await stack.enter_async_context(node.stream(link, path, offset, length))
        except NotFoundError as error:
            if await _leads_to_folder(node, link, path):
                raise UsageError(
                    "This is a folder, and only a file has bytes to write out.",
                    hint="Name a file inside (`meshnode ls LINK` lists them), or use "
                    "`meshnode get` for all of it.",
                ) from error
            raise
        yield pieces


async def ls(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{"link", "path"?, "recursive"?} -> {"name", "kind", "path", "entries": [...]}."""
    fields = Fields(request)
    link = _link(fields)
    path = fields.inner_path("path")
    recursive = fields.flag("recursive")
    fields.done()
    manifest = await node.manifest(link)
    # In a thread: a folder may have a million entries.
    return await trio.to_thread.run_sync(
        partial(list_manifest, manifest, path, recursive=recursive)
    )


async def stat(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{"link"} -> what it leads to: kind, name, sizes, number of files and chunks."""
    fields = Fields(request)
    link = _link(fields)
    fields.done()
    manifest = await node.manifest(link)
    told = await trio.to_thread.run_sync(describe_manifest, manifest)
    return describe_link(link.digest, has_key=link.key is not None) | told


async def rm(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{"links": [...]} -> {"links": [{"cid", ...report} or {"cid", "error"}]}, in that order."""
    fields = Fields(request)
    links = [Link.parse(text) for text in fields.texts("links", most=MAX_LINKS)]
    fields.done()
    outcomes: list[JsonObject] = []
    for link in links:
        outcome: JsonObject = {"cid": link.cid}
        try:
            outcome |= (await node.remove(link)).to_json()
        except Exception as error:
            told = as_mesh_error(error)
            if told is None:
                raise
            outcome["error"] = error_to_json(told)
        outcomes.append(outcome)
    return {"links": outcomes}


async def status(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{} -> who and where this node is, what it holds and whom it sees."""
    Fields(request).done()
    return (await node.status()).to_json()


async def peers(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{} -> {"peers": [...]}."""
    Fields(request).done()
    return {"peers": [peer.to_json() for peer in await node.peers()]}


async def catalogue(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{} -> {"entries": [...]}: what was put on this node, newest first."""
    Fields(request).done()
    return {"entries": [entry.to_json() for entry in await node.catalogue()]}


async def why(node: Transfers, request: object, emit: Emit) -> JsonObject:
    """{"link"?, "count"?} -> {"transfers": [...]}: the last ones, newest first, in words."""
    fields = Fields(request)
    text = fields.optional_text("link")
    root = None if text is None else Link.parse(text).digest
    count = fields.integer("count", low=1, high=MAX_TRANSFERS) or 1
    fields.done()
    found = await node.transfers(root, count)
    if root is not None and not found:
        raise NotFoundError(
            "No transfer of this link is remembered here.",
            hint="`meshnode why` without a link shows the latest; the last 200 are kept, on the "
            "node that ran them.",
        )
    return {"transfers": [transfer.to_json() for transfer in found]}


async def config(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{} -> {"config_file", "settings": {key: {"value", "origin"}}} as this node runs with it."""
    Fields(request).done()
    settings = {
        entry.setting.key: {"value": entry.value, "origin": entry.origin}
        for entry in entries(node.config)
    }
    return {"config_file": str(node.config.paths.config_file), "settings": settings}


async def stop(node: NodeFace, request: object, emit: Emit) -> JsonObject:
    """{} -> {"stopping": true}; the node ends after this answer."""
    Fields(request).done()
    node.request_stop()
    return {"stopping": True}


async def _leads_to_folder(node: NodeFace, link: Link, path: bytes | None) -> bool:
    """Whether a folder is there; False also when the manifest is not to be had quickly."""
    with trio.move_on_after(_EXPLAIN_SECS):
        try:
            manifest = await node.manifest(link)
        except MeshError:
            return False
        return await trio.to_thread.run_sync(is_folder, manifest, path)
    return False


def _put_options(fields: Fields) -> PutOptions:
    """The fields that every kind of put has; what is absent is as the node is configured."""
    compression = fields.choice("compression", _COMPRESSIONS)
    return PutOptions(
        replication=fields.integer("replication", low=1, high=MAX_REPLICATION),
        chunker=fields.choice("chunker", CHUNKER_KINDS),
        compression=_COMPRESSIONS[compression] if compression else None,
        public=fields.flag("public"),
    )


def _refuse_special_file(destination: Path) -> None:
    """To replace a file is to give its name to another: --force must not do that to a device."""
    try:
        mode = destination.lstat().st_mode
    except (OSError, ValueError):
        return  # not there, or not reachable: the get itself says so
    if not (S_ISREG(mode) or S_ISDIR(mode) or S_ISLNK(mode)):
        raise DestinationError(
            f"{destination} is neither a file nor a folder; nothing was written.",
            hint="Write to a file, or to standard output with `-o -`.",
        )


def _link(fields: Fields) -> Link:
    return Link.parse(fields.text("link"))


def _sink(emit: Emit) -> Callable[[TransferEvent], None]:
    return lambda event: emit(event.to_json())
