"""Names in the store of values: the newest stays, and who made it answers for it."""

from __future__ import annotations

import pytest
import trio
from meshnode.dht.backend import MemoryBackend, RowKind, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.names import NAME_NAMESPACE, NameRecord, sign_name
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records_wire import Verdict
from meshnode.dht.settings import DhtSettings
from meshnode.dht.validators import Checked, Validators
from meshnode.dht.values import ValueStore
from meshnode.node.identity import Identity

OWN, CARRIER, OTHER = (PeerId.from_ed25519(bytes([i]) * 32) for i in (7, 8, 9))
NOW = 1_800_000_000.0


ALICE = Identity.from_seed(b"\1" * 32)


def name(sequence: int, *, text: str = "photos", lives: int = 500, size: int = 9) -> NameRecord:
    return sign_name(ALICE, text, bytes(size), sequence=sequence, expires=int(NOW) + lives)


def store(**settings: int) -> tuple[ValueStore, RowWriter, MemoryBackend]:
    backend, counters = MemoryBackend(), Counters()
    rows = RowWriter(backend, counters)
    return ValueStore(OWN, DhtSettings(**settings), rows, counters, Validators()), rows, backend


def put(kept: ValueStore, by: PeerId, record: NameRecord, until: float = NOW + 9999) -> Verdict:
    checked = Validators().check(record.key, record.encoded, NOW)
    return kept.put(by, record.key, record.encoded, checked, until)


def valid(kept: ValueStore, now: float = NOW) -> bytes | None:
    found = kept.get(name(0).key, now)
    return None if found is None else found[0]


def test_an_older_record_never_replaces_a_newer_one() -> None:
    kept, _, _ = store()
    assert put(kept, CARRIER, name(2)) is Verdict.STORED
    assert put(kept, OTHER, name(1)) is Verdict.OUTDATED
    assert valid(kept) == name(2).encoded
    assert put(kept, OTHER, name(3)) is Verdict.STORED
    assert valid(kept) == name(3).encoded
    assert len(kept) == kept.kept_of(NAME_NAMESPACE) == 1
    assert kept.kept_bytes == len(name(3).encoded)


def test_of_our_own_and_a_kept_record_the_newer_is_valid() -> None:
    kept, _, _ = store()
    record = name(5)
    kept.put_own(record.key, record.encoded, Validators().check(record.key, record.encoded, NOW))
    assert put(kept, CARRIER, name(4)) is Verdict.STORED
    assert valid(kept) == name(5).encoded
    assert put(kept, CARRIER, name(6)) is Verdict.STORED
    assert valid(kept) == name(6).encoded


def test_a_record_is_kept_until_it_expires_or_nobody_repeats_it() -> None:
    kept, _, _ = store()
    put(kept, CARRIER, name(1, lives=500), until=NOW + 9999)
    assert valid(kept, NOW + 499) is not None
    assert valid(kept, NOW + 500) is None
    put(kept, CARRIER, name(2, lives=500), until=NOW + 100)
    assert valid(kept, NOW + 101) is None
    put(kept, CARRIER, name(2, lives=500), until=NOW + 200)
    assert valid(kept, NOW + 101) is not None
    assert kept.sweep(NOW + 300) == 1
    assert (len(kept), kept.kept_bytes, kept.kept_of(NAME_NAMESPACE)) == (0, 0, 0)


async def test_who_made_a_record_takes_it_over_from_who_brought_it() -> None:
    kept, rows, backend = store(max_values_per_peer=1)
    assert put(kept, CARRIER, name(1)) is Verdict.STORED
    assert put(kept, CARRIER, name(1, text="music")) is Verdict.PEER_FULL
    assert put(kept, ALICE.peer_id, name(2)) is Verdict.STORED
    assert put(kept, CARRIER, name(1, text="music")) is Verdict.STORED
    assert put(kept, ALICE.peer_id, name(1, text="films")) is Verdict.PEER_FULL
    await rows.flush()
    owners = {row[2] for row in backend.rows.values()}
    assert owners == {bytes(CARRIER), bytes(ALICE.peer_id)}
    assert len(backend.rows) == 2, "the row of the former owner is gone"


def test_a_larger_record_needs_room_for_what_it_adds() -> None:
    small, large = name(1, size=0), name(2, size=900)
    kept, _, _ = store(max_record_bytes_per_peer=500)
    assert put(kept, CARRIER, small) is Verdict.STORED
    assert put(kept, CARRIER, large) is Verdict.PEER_FULL
    assert valid(kept) == small.encoded


async def test_names_survive_a_restart_and_expired_or_forged_rows_do_not() -> None:
    kept, rows, backend = store()
    put(kept, CARRIER, name(1))
    own = name(1, text="mine")
    kept.put_own(own.key, own.encoded, Validators().check(own.key, own.encoded, NOW))
    await rows.flush()
    forged = (int(RowKind.VALUE), name(0, text="x").key, bytes(OTHER), own.encoded, NOW + 99)
    await backend.save([forged])
    again, rows, _ = store()
    again.restore(await backend.load(), NOW + 1)
    assert valid(again) == name(1).encoded
    assert again.own_keys() == [own.key]
    assert len(again) == 1
    late, _, _ = store()
    late.restore(await backend.load(), NOW + 501)
    assert (len(late), late.own_keys()) == (0, [])


async def kept_on_disk(count: int, size: int = 9) -> MemoryBackend:
    kept, rows, backend = store()
    for number in range(count):
        put(kept, CARRIER, name(1, text=f"{number}", size=size))
    await rows.flush()
    return backend


async def test_restoring_many_names_checks_none_of_them_before_it_is_asked_or_has_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    backend = await kept_on_disk(100)
    checked: list[bytes] = []

    def check(self: Validators, key: bytes, value: bytes, now: float) -> Checked:
        checked.append(key)
        return unwatched(self, key, value, now)

    unwatched = Validators.check
    monkeypatch.setattr(Validators, "check", check)
    again, _, _ = store()
    again.restore(await backend.load(), NOW + 1)
    assert checked == []
    asked = name(1, text="57")
    found = again.get(asked.key, NOW + 2)
    assert found is not None
    assert found[0] == asked.encoded
    assert checked == [asked.key]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while len(again) < 100:
            turns += 1
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await again.check_saved()
    assert turns > 3  # others had theirs meanwhile
    assert len(again) == again.kept_of(NAME_NAMESPACE) == 100
    assert len(checked) == 100  # and none twice


async def test_what_came_since_the_start_is_not_undone_by_what_was_saved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = await kept_on_disk(1)
    again, _, _ = store()
    again.restore(await backend.load(), NOW + 1)
    newer, older = name(2, text="0"), name(0, text="0")
    assert put(again, OTHER, older) is Verdict.OUTDATED
    assert put(again, OTHER, newer) is Verdict.STORED
    await again.check_saved()
    found = again.get(newer.key, NOW + 2)
    assert found is not None
    assert found[0] == newer.encoded
    assert len(again) == 1


async def test_saved_values_that_rotted_or_have_no_room_any_more_leave_the_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = await kept_on_disk(4, size=500)
    ids = list(backend.rows)
    kind, key, publisher, value, expires = backend.rows[ids[0]]
    backend.rows[ids[0]] = (kind, key, publisher, value[:-1] + b"\0", expires)
    counters = Counters()
    rows = RowWriter(backend, counters)
    again = ValueStore(OWN, DhtSettings(max_value_bytes=1500), rows, counters, Validators())
    again.restore(await backend.load(), NOW + 1)
    await again.check_saved()
    await rows.flush()
    assert len(again) == len(backend.rows) == 2
    assert ids[0] not in backend.rows
