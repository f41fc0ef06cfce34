"""A storing process is killed with SIGKILL: what it said was stored is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from meshnode.node.store import open_store

STORING = textwrap.dedent(
    """
    import os, sys, trio
    from pathlib import Path
    from blake3 import blake3
    from meshnode.node.store import open_store

    async def main(path):
        async with open_store(path, quota=None, min_free=0, segment_bytes=200_000) as store:
            async def work():
                while True:
                    chunks = [os.urandom(1 + os.urandom(1)[0] * 64) for _ in range(3)]
                    named = [(blake3(data).digest(), data) for data in chunks]
                    await store.chunks.put(named)
                    for digest, _ in named[1:]:
                        print("+", digest.hex(), flush=True)
                    await store.chunks.delete([named[0][0]])
                    print("-", named[0][0].hex(), flush=True)
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(work)

    trio.run(main, Path(sys.argv[1]))
    """
)


def store_until_killed(path: Path, lines_to_read: int) -> list[list[str]]:
    """What the child said, as (sign, digest), up to the moment of its death."""
    with subprocess.Popen(
        [sys.executable, "-c", STORING, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(lines_to_read)]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        # A last line without its end may be cut.
        lines += rest.splitlines()[: rest.count("\n")]
    return [line.split() for line in lines if line.strip()]


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_acknowledged_before_kill_9_is_there(tmp_path, seed):
    path = tmp_path / "data"
    lines_to_read = random.Random(seed).randrange(50, 400)
    said = await trio.to_thread.run_sync(store_until_killed, path, lines_to_read)
    assert len(said) >= lines_to_read, "the child died early"
    async with open_store(path, quota=None, min_free=0, segment_bytes=200_000) as store:
        for sign, name in said:
            digest = bytes.fromhex(name)
            assert await store.chunks.has([digest]) == [sign == "+"]
        async for digest, _ in store.chunks.list():
            assert blake3(await store.chunks.get(digest)).digest() == digest
