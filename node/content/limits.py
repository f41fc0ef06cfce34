"""Bounds that every format of this room keeps. Sizes in bytes."""

from __future__ import annotations

from typing import Final

Digest = bytes
"""32 bytes: BLAKE3-256 of a chunk's stored bytes."""

Buffer = bytes | bytearray | memoryview

DIGEST_BYTES: Final = 32
KEY_BYTES: Final = 32

MAX_STORED_BYTES: Final = 8 * 1024 * 1024
"""Largest stored chunk; the store refuses more."""

MAX_PLAIN_BYTES: Final = MAX_STORED_BYTES - 64 * 1024
"""Largest plaintext of one chunk; with the tag of the seal it stays below `MAX_STORED_BYTES`."""

MAX_ROOT_BYTES: Final = 48 * 1024
"""Largest stored root of a manifest: fits a DHT value of 64 KiB with room for framing."""

MAX_ROOT_BODY_BYTES: Final = 1024 * 1024
"""How far the body inside a root may inflate; a larger manifest becomes a tree."""

MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024
"""Largest encoded manifest, as a tree."""

MAX_ENTRIES: Final = 1_000_000
MAX_CHUNKS: Final = 2_000_000
MAX_SLICES: Final = 2_000_000
"""Per manifest. In memory each takes some hundred bytes, however well a manifest compresses."""

MAX_TREE_DEPTH: Final = 8
"""Levels of chunk lists above a manifest; the default layout needs two for the largest one."""

MAX_PATH_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
MAX_MEDIA_TYPE_CHARS: Final = 255
MAX_PROFILE_CHARS: Final = 64
