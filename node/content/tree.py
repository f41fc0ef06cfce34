"""From a manifest to its root, and back: envelope, seal, and a tree when it grows too large.

A root is an envelope around a body, sealed like a chunk (or bare, for public content). The body is
a manifest, or, when that does not fit 48 KiB, a list of the chunks that hold it; when the list does
not fit, a list of the chunks that hold the list. The reader goes the other way: `open_root`, then
as long as the result is a `ChunkList`: fetch its chunks, open them, `assemble`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from ...errors import FormatError, IntegrityError, LinkError, WrongKeyError
from .canonical import canonical
from .compression import Codec, decompress
from .encoding import (
    BodyKind,
    body_kind,
    decode_body,
    decode_list,
    encode_body,
    encode_list,
)
from .limits import (
    MAX_MANIFEST_BYTES,
    MAX_PLAIN_BYTES,
    MAX_ROOT_BODY_BYTES,
    MAX_ROOT_BYTES,
    MAX_TREE_DEPTH,
    Buffer,
)
from .link import Link
from .manifest import Manifest
from .sealing import ChunkRef, SealedChunk, Sealer, unseal

_ENVELOPE: Final = struct.Struct(">4sBBBBI")
_MAGIC: Final = b"mesh"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """How a large manifest is cut. Part of what decides its root; readers accept any layout.

    `node_bytes` of encoded manifest per chunk; a root above `root_bytes` becomes a tree.
    """

    node_bytes: int = 256 * 1024
    root_bytes: int = MAX_ROOT_BYTES

    def __post_init__(self) -> None:
        if not (
            1024 <= self.node_bytes <= MAX_PLAIN_BYTES and 1024 <= self.root_bytes <= MAX_ROOT_BYTES
        ):
            raise ValueError(f"no sound layout: {self.node_bytes}, {self.root_bytes}")


DEFAULT_LAYOUT: Final = TreeLayout()


@dataclass(frozen=True, slots=True)
class EncodedManifest:
    """A manifest ready to be stored.

    `root.data` has at most 48 KiB; `link` opens it; `nodes` are the chunks of a larger manifest.
    """

    link: Link
    root: SealedChunk
    nodes: tuple[SealedChunk, ...]


@dataclass(frozen=True, slots=True)
class ChunkList:
    """A manifest too large for one root: the chunks that hold the next level, in order.

    At `depth` 1 they hold the manifest (`manifest_size` bytes), above it a list of `depth` - 1.
    """

    refs: tuple[ChunkRef, ...]
    depth: int
    kind: BodyKind
    manifest_size: int

    def assemble(self, plains: Sequence[Buffer]) -> Manifest | ChunkList:
        """The next level, from the opened chunks in the order of `refs`.

        Raises:
            FormatError: the pieces are not those of the list, or make no sound level.
        """
        if [len(plain) for plain in plains] != [ref.plain_size for ref in self.refs]:
            raise FormatError("The pieces of a manifest are not those its list announces.")
        body = b"".join(plains)
        if self.depth == 1:
            return decode_body(self.kind, body)
        below = _parse_list(body)
        expected = (self.depth - 1, self.kind, self.manifest_size)
        if (below.depth, below.kind, below.manifest_size) != expected:
            raise FormatError("Two levels of a manifest tree contradict each other.")
        return below


def encode_manifest(
    manifest: Manifest, sealer: Sealer, *, layout: TreeLayout = DEFAULT_LAYOUT
) -> EncodedManifest:
    """Bring a manifest into canonical order, encode and seal it.

    Equal manifests, sealers and layouts give equal roots (for one version of zstd).

    Raises:
        FormatError: the manifest breaks a bound (a path too long, more than 256 MiB encoded) or
            contradicts itself (sizes, a path that is both file and folder).
    """
    manifest = canonical(manifest)
    kind = body_kind(manifest)
    body = encode_body(manifest)
    size = len(body)
    if size > MAX_MANIFEST_BYTES:
        raise FormatError(
            f"The manifest has {size} bytes; {MAX_MANIFEST_BYTES} is the most.",
            hint="Put the folder in several parts.",
        )
    nodes: dict[bytes, SealedChunk] = {}
    depth = 0
    while (root := _seal_root(kind, depth, body, sealer, layout)) is None:
        view = memoryview(body)
        level = [
            sealer.seal(view[start : start + layout.node_bytes])
            for start in range(0, len(body), layout.node_bytes)
        ]
        nodes.update((node.ref.digest, node) for node in level)
        depth += 1
        if depth > MAX_TREE_DEPTH:
            raise FormatError("The manifest needs too deep a tree for its layout.")
        body = encode_list(depth, kind, size, [node.ref for node in level])
    return EncodedManifest(Link(root.ref.digest, root.ref.key), root, tuple(nodes.values()))


def open_root(link: Link, stored: Buffer) -> Manifest | ChunkList:
    """Verify, unseal and decode the root a link names.

    Raises:
        IntegrityError: `stored` is not what the link names.
        WrongKeyError: it is, and the link's key does not open it.
        LinkError: it is sealed and the link has no key (or names no manifest).
        FormatError: it opens, and is no sound manifest.
    """
    if len(stored) > MAX_ROOT_BYTES:
        raise FormatError(
            f"{link.cid} is no manifest: it has {len(stored)} bytes, the most is {MAX_ROOT_BYTES}."
        )
    if blake3(stored).digest() != link.digest:
        raise IntegrityError(f"The bytes of manifest {link.cid} do not match its digest.")
    kind, body = _open_envelope(_unsealed(link, bytes(stored)))
    if kind is BodyKind.CHUNK_LIST:
        return _parse_list(body)
    return decode_body(kind, body)


def _seal_root(
    kind: BodyKind, depth: int, body: bytes, sealer: Sealer, layout: TreeLayout
) -> SealedChunk | None:
    """The sealed root, None when it would be too large."""
    if len(body) > MAX_ROOT_BODY_BYTES:
        return None
    codec, payload = sealer.compressor.compress(body)
    if _ENVELOPE.size + len(payload) + sealer.overhead > layout.root_bytes:
        return None
    shape = kind if depth == 0 else BodyKind.CHUNK_LIST
    head = _ENVELOPE.pack(_MAGIC, _VERSION, shape, codec, 0, len(body))
    return sealer.seal_as_is(head + payload)


def _unsealed(link: Link, stored: bytes) -> bytes:
    public = stored.startswith(_MAGIC)
    if link.key is not None:
        try:
            return unseal(link.digest, link.key, stored)
        except WrongKeyError as error:
            if not public:
                raise
            raise WrongKeyError(
                f"{link.cid} is public content, and yet the link has a key.",
                hint="Leave out '#' and what follows it.",
            ) from error
    if not public:
        raise LinkError(
            f"{link.cid} is sealed, and the link has no key part, so it cannot be read.",
            hint="Use the whole link, with '#' and what follows it, in quotes in a shell.",
        )
    return stored


def _open_envelope(envelope: bytes) -> tuple[BodyKind, bytes]:
    if len(envelope) < _ENVELOPE.size or not envelope.startswith(_MAGIC):
        raise FormatError("The content opens, but is no manifest.", hint="Is it a link to a chunk?")
    _, version, kind, codec, reserved, size = _ENVELOPE.unpack_from(envelope)
    if version != _VERSION:
        raise FormatError(
            f"The manifest has format version {version}; this meshnode reads {_VERSION}.",
            hint="Update meshnode and try again.",
        )
    if kind not in tuple(BodyKind) or codec not in tuple(Codec) or reserved:
        raise FormatError("The manifest's envelope has unknown values.")
    if not 0 < size <= MAX_ROOT_BODY_BYTES:
        raise FormatError(f"The manifest's envelope announces {size} bytes.")
    payload = envelope[_ENVELOPE.size :]
    if codec == Codec.ZSTD:
        return BodyKind(kind), decompress(payload, size)
    if len(payload) != size:
        raise FormatError(f"The manifest has {len(payload)} bytes where {size} belong.")
    return BodyKind(kind), payload


def _parse_list(body: bytes) -> ChunkList:
    depth, kind, manifest_size, refs = decode_list(body)
    total = sum(ref.plain_size for ref in refs)
    # A list is smaller than what it lists, so no level may exceed the manifest itself.
    if not 0 < total <= manifest_size <= MAX_MANIFEST_BYTES:
        raise FormatError(f"A manifest's chunk list announces {total} of {manifest_size} bytes.")
    if depth == 1 and total != manifest_size:
        raise FormatError(f"A manifest of {manifest_size} bytes has chunks for {total}.")
    return ChunkList(refs, depth, kind, manifest_size)
