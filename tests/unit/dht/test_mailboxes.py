from __future__ import annotations

import pytest
import trio
from meshnode.dht import mailboxes as mailboxes_module
from meshnode.dht.backend import MemoryBackend, RowKind, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.mailboxes import Mailboxes
from meshnode.dht.notices import MAX_NOTICES_PER_KEY, Notice, decode_bundle, notice_key, sign_notice
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records_wire import Verdict
from meshnode.dht.settings import DhtSettings
from meshnode.node.identity import Identity

NOW = 1_800_000_000
BOB = PeerId.from_ed25519(b"b" * 32)
KEY = notice_key(BOB)


SENDERS = [Identity.from_seed(bytes([i]) * 32) for i in range(1, 40)]
CARRIER = PeerId.from_ed25519(b"c" * 32)


def notice(sender: int, number: int = 0, size: int = 20, to: PeerId = BOB) -> Notice:
    sealed = number.to_bytes(2, "big") + bytes(size)
    created = NOW + number
    return sign_notice(SENDERS[sender], to, sealed, created=created, expires=created + 1000)


def mailboxes(**settings: int) -> tuple[Mailboxes, MemoryBackend, RowWriter, Counters]:
    counters, backend = Counters(), MemoryBackend()
    rows = RowWriter(backend, counters)
    return Mailboxes(DhtSettings(**settings), rows, counters), backend, rows, counters


def senders(boxes: Mailboxes) -> list[PeerId]:
    bundle = boxes.bundle(KEY, NOW)
    assert bundle is not None
    return [found.sender for found in decode_bundle(KEY, bundle)]


def test_one_sender_has_few_notices_in_a_mailbox() -> None:
    boxes, _, _, counters = mailboxes(max_notices_per_sender=3)
    verdicts = [boxes.put(CARRIER, notice(0, i), NOW + 500) for i in range(5)]
    assert verdicts == [Verdict.STORED] * 3 + [Verdict.PEER_FULL] * 2
    assert boxes.put(CARRIER, notice(1), NOW + 500) is Verdict.STORED
    assert boxes.put(CARRIER, notice(0), NOW + 900) is Verdict.STORED, "refreshing needs no room"
    assert counters["notices_refused"] == 2
    assert len(boxes) == 4


def test_a_full_mailbox_gives_up_the_oldest_of_the_loudest_sender() -> None:
    boxes, _, _, counters = mailboxes(max_notices_per_sender=40)
    for i in range(40):
        boxes.put(PeerId.from_ed25519(bytes([100 + i // 20]) * 32), notice(0, i), NOW + 500)
    for i in range(24):
        boxes.put(CARRIER, notice(1 + i), NOW + 500)
    assert len(boxes) == MAX_NOTICES_PER_KEY
    assert boxes.put(SENDERS[30].peer_id, notice(30), NOW + 500) is Verdict.STORED
    assert len(boxes) == MAX_NOTICES_PER_KEY
    assert counters["notices_evicted"] == 1
    kept = senders(boxes)
    assert kept.count(SENDERS[0].peer_id) == 39
    assert SENDERS[30].peer_id in kept
    bundle = boxes.bundle(KEY, NOW)
    assert bundle is not None
    assert min(n.created for n in decode_bundle(KEY, bundle) if n.sender == SENDERS[0].peer_id) == (
        NOW + 1
    )


def test_a_mailbox_of_quiet_senders_refuses_a_louder_one() -> None:
    boxes, _, _, _ = mailboxes(max_notices_per_sender=40)
    for i in range(32):
        boxes.put(SENDERS[i].peer_id, notice(i, 0), NOW + 500)
        boxes.put(SENDERS[i].peer_id, notice(i, 1), NOW + 500)
    assert boxes.put(CARRIER, notice(0, 2), NOW + 500) is Verdict.FAR
    assert boxes.put(CARRIER, notice(33), NOW + 500) is Verdict.STORED
    assert boxes.put(CARRIER, notice(33, 1), NOW + 500) is Verdict.FAR


def test_one_peer_cannot_fill_a_mailbox_in_many_names() -> None:
    boxes, _, _, _ = mailboxes()
    verdicts = [boxes.put(CARRIER, notice(i), NOW + 500) for i in range(39)]
    assert verdicts.count(Verdict.STORED) == 24
    assert boxes.put(SENDERS[38].peer_id, notice(38), NOW + 500) is Verdict.STORED


def test_what_one_peer_brings_and_all_together_is_bounded_in_bytes() -> None:
    size = len(notice(0).encoded)
    boxes, _, _, _ = mailboxes(max_notice_bytes_per_peer=2 * size, max_notice_bytes=3 * size)
    other = PeerId.from_ed25519(b"o" * 32)
    assert boxes.put(CARRIER, notice(0), NOW + 500) is Verdict.STORED
    assert boxes.put(CARRIER, notice(1), NOW + 500) is Verdict.STORED
    assert boxes.put(CARRIER, notice(2), NOW + 500) is Verdict.PEER_FULL
    assert boxes.put(other, notice(2), NOW + 500) is Verdict.STORED
    assert boxes.put(other, notice(3), NOW + 500) is Verdict.FAR
    assert boxes.kept_bytes == 3 * size
    assert boxes.sweep(NOW + 500) == 3
    assert boxes.kept_bytes == 0
    assert boxes.put(CARRIER, notice(4), NOW + 900) is Verdict.STORED


def test_the_largest_mailbox_still_fits_into_one_answer() -> None:
    boxes, _, _, _ = mailboxes()
    stored = [boxes.put(SENDERS[i].peer_id, notice(i, size=4000), NOW + 500) for i in range(39)]
    assert Verdict.FAR in stored
    assert len(senders(boxes)) == stored.count(Verdict.STORED) > 10


async def test_notices_survive_a_restart_unless_expired_or_rotten() -> None:
    boxes, backend, rows, counters = mailboxes()
    boxes.put(CARRIER, notice(0), NOW + 500)
    boxes.put(CARRIER, notice(1), NOW + 10)
    boxes.put_own(notice(2))
    await rows.flush()
    rotten = (int(RowKind.NOTICE), KEY, b"n" * 32, b"rot", NOW + 500.0)
    await backend.save([rotten])
    again = Mailboxes(DhtSettings(), rows, counters)
    again.restore(await backend.load(), NOW + 20)
    assert set(senders(again)) == {SENDERS[0].peer_id, SENDERS[2].peer_id}
    assert [n.sender for n in again.own()] == [SENDERS[2].peer_id]
    await rows.flush()
    assert len(backend.rows) == 2
    again.sweep(NOW + 2000)
    await rows.flush()
    assert not backend.rows
    assert again.bundle(KEY, NOW + 2000) is None


def recipient(number: int) -> PeerId:
    return PeerId.from_ed25519(number.to_bytes(32, "big"))


async def kept_on_disk(boxes_with: int, each: int = 1) -> MemoryBackend:
    boxes, backend, rows, _ = mailboxes()
    for box in range(boxes_with):
        for sender in range(each):
            one = notice(sender, to=recipient(box))
            assert boxes.put(CARRIER, one, NOW + 500) is Verdict.STORED
    await rows.flush()
    return backend


async def test_restoring_many_notices_checks_none_of_them_before_it_is_asked_or_has_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    backend = await kept_on_disk(50, each=2)
    checked: list[bytes] = []

    def check(key: bytes, value: bytes, now: float) -> Notice:
        checked.append(key)
        return unwatched(key, value, now)

    unwatched = mailboxes_module.check_notice
    monkeypatch.setattr(mailboxes_module, "check_notice", check)
    again, _, _, _ = mailboxes()
    again.restore(await backend.load(), NOW + 1)
    assert checked == []
    asked = notice_key(recipient(17))
    bundle = again.bundle(asked, NOW + 2)
    assert bundle is not None
    assert len(decode_bundle(asked, bundle)) == 2
    assert checked == [asked, asked]
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
    assert len(again) == len(checked) == 100  # and none twice


async def test_a_saved_notice_takes_its_room_as_soon_as_its_mailbox_is_used() -> None:
    backend = await kept_on_disk(1, each=2)
    again, _, _, _ = mailboxes(max_notices_per_sender=1)
    again.restore(await backend.load(), NOW + 1)
    assert again.put(CARRIER, notice(0, 1, to=recipient(0)), NOW + 500) is Verdict.PEER_FULL
    assert again.put(CARRIER, notice(2, to=recipient(0)), NOW + 500) is Verdict.STORED
    assert len(again) == 3


async def test_saved_notices_that_rotted_or_have_no_room_any_more_leave_the_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = await kept_on_disk(4)
    ids = list(backend.rows)
    kind, key, name, value, expires = backend.rows[ids[0]]
    backend.rows[ids[0]] = (kind, key, name, value[:-1] + b"\0", expires)
    counters = Counters()
    rows = RowWriter(backend, counters)
    room = 2 * len(value)
    again = Mailboxes(DhtSettings(max_notice_bytes=room), rows, counters)
    again.restore(await backend.load(), NOW + 1)
    await again.check_saved()
    await rows.flush()
    assert len(again) == len(backend.rows) == 2
    assert ids[0] not in backend.rows
