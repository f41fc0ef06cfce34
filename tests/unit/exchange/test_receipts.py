from __future__ import annotations

import dataclasses

import pytest
from meshnode.errors import PeerError
from meshnode.node.exchange.receipts import check, issue, statement
from meshnode.node.identity import Identity, verify

HOLDER, OWNER = Identity.from_seed(b"h" * 32), Identity.from_seed(b"o" * 32)
RECEIPT = issue(HOLDER, OWNER.peer_id, b"\xaa" * 32, 1000, 1_700_000_000, 1_700_000_060)


def test_a_true_receipt_is_believed():
    check(RECEIPT, 60, verify)


@pytest.mark.parametrize(
    "change",
    [
        {"holder": OWNER.peer_id},
        {"owner": HOLDER.peer_id},
        {"digest": b"\xab" * 32},
        {"size": 1001},
        {"issued": 1_700_000_001},
        {"until": 1_700_000_059},
        {"signature": bytes(64)},
        {"signature": b""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_part_of_a_receipt_can_be_changed(change):
    with pytest.raises(PeerError, match="false signature"):
        check(dataclasses.replace(RECEIPT, **change), 60, verify)


def test_a_receipt_for_another_time_than_asked_is_not_believed():
    with pytest.raises(PeerError, match="60 s"):
        check(RECEIPT, 59, verify)


def test_the_statement_has_a_domain_of_its_own_and_never_changes():
    signed = statement(HOLDER.peer_id, OWNER.peer_id, b"\xaa" * 32, 1000, 1, 2)
    peers = "".join("c426" + bytes(i.peer_id).hex() for i in (HOLDER, OWNER))
    assert signed == b"meshnode/chunk-receipt/1\x00" + bytes.fromhex(
        "96" + peers + "c420" + "aa" * 32 + "cd03e8" + "01" + "02"
    )
