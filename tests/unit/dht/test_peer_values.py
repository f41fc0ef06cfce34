"""Peer records as values of the DHT: good under one key, in one mesh, for a time, until a newer."""

from __future__ import annotations

import pytest
from meshnode.dht.backend import MemoryBackend, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.peer_id import PeerId
from meshnode.dht.peer_record import PeerRecord, peer_record_key, sign_record
from meshnode.dht.records_wire import Verdict
from meshnode.dht.settings import DhtSettings
from meshnode.dht.validators import Validators, namespace_of
from meshnode.dht.values import ValueStore
from meshnode.errors import FormatError, IntegrityError, RefusedError
from meshnode.node.identity import Identity

REALM, ELSEWHERE = b"r" * 32, b"e" * 32
CARRIER = PeerId.from_ed25519(b"c" * 32)
GOLDEN_KEY = "9f6bf331e44d405994db8e66b944b36d61a9661e9176da2dc5968988492fa785"
NOW = 1_800_000_000.0
HOUR = 3600


ANNA, EVE = (Identity.from_seed(bytes([i]) * 32) for i in (1, 2))
VALIDATORS = Validators(REALM)


def record(
    age: float = 0.0, *, port: int = 1, signer: Identity = ANNA, realm: bytes = REALM
) -> PeerRecord:
    """Signed `age` seconds ago, for four hours."""
    seq = int((NOW - age) * 1000)
    return sign_record(signer, seq, 4 * HOUR, [f"/ip4/192.0.2.7/tcp/{port}"], "", realm=realm)


def test_the_key_of_a_peer_is_what_it_always_was() -> None:
    key = peer_record_key(ANNA.peer_id)
    assert key == b"/meshnode/peer/" + bytes.fromhex(GOLDEN_KEY)
    assert record().key == key
    assert namespace_of(key) == b"/meshnode/peer/"


def test_a_record_is_good_under_the_key_of_its_signer_and_in_its_mesh_only() -> None:
    good = record()
    checked = VALIDATORS.check(good.key, good.encoded, NOW)
    assert (checked.signer, checked.expires) == (ANNA.peer_id, NOW + 4 * HOUR)
    with pytest.raises(IntegrityError):
        VALIDATORS.check(peer_record_key(EVE.peer_id), good.encoded, NOW)
    with pytest.raises(IntegrityError):
        VALIDATORS.check(good.key, record(signer=EVE).encoded, NOW)
    with pytest.raises(IntegrityError):
        VALIDATORS.check(good.key, record(realm=ELSEWHERE).encoded, NOW)
    with pytest.raises(FormatError):
        VALIDATORS.check(good.key, b"\x90", NOW)
    with pytest.raises(IntegrityError):
        Validators(ELSEWHERE).check(good.key, good.encoded, NOW)


def test_a_record_ends_with_its_lifetime_and_an_hour_for_clocks_that_are_behind() -> None:
    old = record()
    for age, left in ((0, 4 * HOUR), (HOUR, 4 * HOUR), (2 * HOUR, 3 * HOUR), (5 * HOUR - 1, 1)):
        assert VALIDATORS.check(old.key, old.encoded, NOW + age).expires == NOW + age + left
    with pytest.raises(RefusedError, match="expired"):
        VALIDATORS.check(old.key, old.encoded, NOW + 5 * HOUR)


def test_who_has_a_clock_that_is_ahead_is_not_lost_for_that() -> None:
    ahead = record(age=-400 * 24 * HOUR)
    assert VALIDATORS.check(ahead.key, ahead.encoded, NOW).expires == NOW + 4 * HOUR


def test_the_newest_record_stays_whoever_brings_an_older_one() -> None:
    counters = Counters()
    rows = RowWriter(MemoryBackend(), counters)
    kept = ValueStore(CARRIER, DhtSettings(), rows, counters, VALIDATORS)

    def put(by: PeerId, one: PeerRecord) -> Verdict:
        checked = VALIDATORS.check(one.key, one.encoded, NOW)
        return kept.put(by, one.key, one.encoded, checked, NOW + 24 * HOUR)

    old, new = record(age=60, port=1), record(port=2)
    assert put(ANNA.peer_id, old) is Verdict.STORED
    assert put(CARRIER, new) is Verdict.STORED
    for by in (ANNA.peer_id, CARRIER):
        assert put(by, old) is Verdict.OUTDATED
    found = kept.get(new.key, NOW)
    assert found is not None
    assert found[0] == new.encoded
    assert kept.get(new.key, NOW + 4 * HOUR) is None, "it was to be kept for a day, but has expired"
    assert kept.sweep(NOW + 4 * HOUR) == 1


async def test_records_saved_in_another_mesh_or_past_their_time_do_not_come_back() -> None:
    backend, counters = MemoryBackend(), Counters()
    rows = RowWriter(backend, counters)
    kept = ValueStore(CARRIER, DhtSettings(), rows, counters, VALIDATORS)
    one = record()
    kept.put(CARRIER, one.key, one.encoded, VALIDATORS.check(one.key, one.encoded, NOW), NOW + 99)
    await rows.flush()

    async def after(realm: bytes, now: float) -> bytes | None:
        again = ValueStore(CARRIER, DhtSettings(), rows, counters, Validators(realm))
        again.restore(await backend.load(), now)
        found = again.get(one.key, now)
        return None if found is None else found[0]

    assert await after(REALM, NOW + 1) == one.encoded
    assert await after(ELSEWHERE, NOW + 1) is None
    assert await after(REALM, NOW + 100) is None
    await rows.flush()
    assert not backend.rows
