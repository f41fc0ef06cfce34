"""A node that sends false bytes once the file `lies` is in its home: `start` and nothing else.

A damaged disk is found by the node itself, which then serves nothing false. What a peer must bear
is one that lies: bad memory, or ill will.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from meshnode.cli.main import main
from meshnode.node.store.segment_store import SegmentStore

LIES = "lies"

_honest_get = SegmentStore.get
_honest_get_sized = SegmentStore.get_sized


def _falsified(data: bytes) -> bytes:
    if (Path(os.environ["MESHNODE_HOME"]) / LIES).exists():
        return data[:-1] + bytes([data[-1] ^ 1])
    return data


async def _lying_get(self: SegmentStore, digest: bytes) -> bytes:
    return _falsified(await _honest_get(self, digest))


async def _lying_get_sized(self: SegmentStore, digest: bytes, size: int) -> bytes | None:
    data = await _honest_get_sized(self, digest, size)
    return None if data is None else _falsified(data)


if __name__ == "__main__":
    SegmentStore.get = _lying_get  # type: ignore[method-assign]
    SegmentStore.get_sized = _lying_get_sized  # type: ignore[method-assign]
    sys.exit(main(["start"]))
