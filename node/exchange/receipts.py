"""Receipts: a peer's signed word that it keeps a chunk for us.

A receipt names the holder, the owner it keeps the chunk for, the chunk, its size and until when.
The signature (Ed25519 by the holder's identity key) covers a statement that begins with a domain
of its own, so that it can never be taken for a signature made for another purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgpack

from ...dht.peer_id import PeerId
from ...errors import PeerError
from ..store.protocol import Digest

_DOMAIN = b"meshnode/chunk-receipt/1\x00"

Verify = Callable[[PeerId, bytes, bytes], bool]
"""(peer, message, signature) -> whether `peer`'s key made `signature` over `message`."""


class Signer(Protocol):
    """Our identity, as far as the exchange needs it."""

    @property
    def peer_id(self) -> PeerId: ...

    def sign(self, message: bytes, /) -> bytes:
        """A 64-byte Ed25519 signature."""
        ...


def statement(
    holder: PeerId, owner: PeerId, digest: Digest, size: int, issued: int, until: int
) -> bytes:
    """The bytes that are signed: domain, then a canonical msgpack array of the arguments."""
    packed: bytes = msgpack.packb(
        (bytes(holder), bytes(owner), digest, size, issued, until), use_bin_type=True
    )
    return _DOMAIN + packed


@dataclass(frozen=True, slots=True)
class Receipt:
    """`holder` has the chunk durably and keeps it for `owner` until `until` (Unix seconds).

    Times are those of the holder's clock.
    """

    holder: PeerId
    owner: PeerId
    digest: Digest
    size: int
    issued: int
    until: int
    signature: bytes

    def is_valid(self, verify: Verify) -> bool:
        """Whether the holder signed exactly this."""
        message = statement(
            self.holder, self.owner, self.digest, self.size, self.issued, self.until
        )
        return verify(self.holder, message, self.signature)


def issue(
    signer: Signer, owner: PeerId, digest: Digest, size: int, issued: int, until: int
) -> Receipt:
    """A receipt of ours for `owner`. Only for a chunk that is durable already."""
    holder = signer.peer_id
    signature = signer.sign(statement(holder, owner, digest, size, issued, until))
    return Receipt(holder, owner, digest, size, issued, until, signature)


def check(receipt: Receipt, lease_secs: int, verify: Verify) -> None:
    """Believe a receipt that came over the wire, or not.

    Raises:
        PeerError: not signed by the holder, or for another time than was asked. A holder may give
            a shorter lease; only lengths are compared, so clocks need not agree.
    """
    if not 0 < receipt.until - receipt.issued <= lease_secs:
        raise PeerError(
            f"Peer {receipt.holder.short} gave a receipt for "
            f"{receipt.until - receipt.issued} s; at most {lease_secs} s were asked for."
        )
    if not receipt.is_valid(verify):
        raise PeerError(
            f"Peer {receipt.holder.short} gave a receipt with a false signature.",
            hint="Its copy is not counted.",
        )
