"""Make the golden data directory of one format version. Run by hand, once per version:

    python tests/unit/store/make_golden.py

It refuses to overwrite: a golden directory says what a released version wrote, for ever.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import trio
from blake3 import blake3
from meshnode.node.store import open_store
from meshnode.node.store.layout import FORMAT

GOLDEN = Path(__file__).parent / "golden"
KEPT = [b"", b"a", b"golden chunk " * 20, bytes(range(256)) * 2, b"put again after deletion"]
DELETED = [b"deleted in its own segment", b"deleted from another segment" * 9]


async def fill(path: Path) -> None:
    async with open_store(path, quota=None, min_free=0, segment_bytes=900) as store:
        named = {data: blake3(data).digest() for data in KEPT + DELETED}
        await store.chunks.put([(named[data], data) for data in [DELETED[1], *KEPT]])
        await store.chunks.delete([named[DELETED[1]], named[KEPT[4]]])
        await store.chunks.put([(named[DELETED[0]], DELETED[0]), (named[KEPT[4]], KEPT[4])])
        await store.chunks.delete([named[DELETED[0]]])
        await store.key_value("golden").put(b"key", b"value")
        await store.records.save([(1, b"key", b"publisher", b"value", 4e9)])


def main() -> None:
    target = GOLDEN / f"format-{FORMAT}"
    if target.exists():
        sys.exit(f"{target} exists; golden data is never made anew")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        trio.run(fill, path)
        (path / "lock").unlink()
        shutil.copytree(path, target)


if __name__ == "__main__":
    main()
