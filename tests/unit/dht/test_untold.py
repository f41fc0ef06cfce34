from __future__ import annotations

import random

from meshnode.dht.backend import NEVER, MemoryBackend, RowKind, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.untold import Untold

RNG = random.Random(3)
KEYS = [RNG.randbytes(32) for _ in range(2500)]


def untold(backend: MemoryBackend | None = None) -> tuple[Untold, RowWriter, MemoryBackend]:
    backend = backend or MemoryBackend()
    rows = RowWriter(backend, Counters())
    return Untold(rows), rows, backend


def test_the_longest_waiting_come_first_and_the_lag_is_theirs() -> None:
    waiting, _, _ = untold()
    assert waiting.lag(500.0) == 0
    waiting.add(KEYS[:10], 100.0)
    waiting.add(KEYS[5:20], 200.0)
    assert len(waiting) == 20
    assert waiting.oldest(12, without={KEYS[0]}) == KEYS[1:13]
    assert waiting.lag(500.0) == 400.0
    waiting.told(KEYS[:10])
    assert waiting.lag(500.0) == 300.0
    waiting.told(KEYS)
    assert (len(waiting), waiting.lag(500.0)) == (0, 0)


async def test_a_restart_takes_up_what_was_not_told_and_is_still_ours() -> None:
    waiting, rows, backend = untold()
    waiting.add(KEYS, 100.0)
    waiting.told(KEYS[:1024])
    waiting.told(KEYS[1024:1030])
    await rows.flush()
    assert len(backend.rows) == 2, "the row of a batch that was told is gone"
    again, rows, _ = untold(backend)
    again.restore(await backend.load(), set(KEYS[:2400]))
    assert set(KEYS[1030:2400]) <= set(again.oldest(9999, without=set()))
    assert len(again) < 1400, "told keys come back in their batch at most"
    assert again.lag(150.0) == 50.0
    again.told(KEYS)
    await rows.flush()
    assert not backend.rows


async def test_senseless_rows_are_dropped() -> None:
    kind = int(RowKind.UNTOLD)
    backend = MemoryBackend()
    await backend.save([(kind, b"key", b"", b"x", NEVER), (kind, b"\0" * 8, b"", b"y" * 41, NEVER)])
    again, rows, _ = untold(backend)
    again.restore(await backend.load(), set(KEYS))
    assert len(again) == 0
    await rows.flush()
    assert not backend.rows
