"""What travels on `/meshnode/chunk/1`, as data. `wire.py` turns it into bytes and back.

Participants: a client asks, a server answers, over a stream the client opened. Every request has
an id of the client's choosing and gets exactly one final answer with that id, also when it was
cancelled; answers come in any order. `docs/exchange.md` has the byte-exact description.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..store.protocol import MAX_CHUNK_BYTES, Digest
from .lanes import Lane

PROTOCOL = "/meshnode/chunk/1"

MAX_HAVE = 16_384
"""Digests in one HAVE."""
INLINE_PUT_BYTES = 256 * 1024
"""A PUT up to this size may carry its body at once: a refusal then wastes no more than this."""
MAX_REQUEST_ID = 2**53 - 1
MAX_LEASE_SECS = 10 * 365 * 86_400
MAX_NAME_BYTES = 255
MAX_VERSION_BYTES = 64
MAX_DETAIL_BYTES = 512
MAX_RETRY_AFTER_MS = 3_600_000
MAX_COUNT = 2**63 - 1
"""Upper bound of byte counts and times (Unix seconds) in messages."""
MAX_BELIEVED = 2**50
"""Of the room and the chunks a peer claims to have, more is taken for this much: a petabyte weighs
enough, and sums and shares of what many peers claim stay sane."""

assert INLINE_PUT_BYTES <= MAX_CHUNK_BYTES


class Reason(StrEnum):
    """Why a server says no. A client accepts words it does not know: newer peers may have more."""

    BUSY = "busy"
    """Too many requests or bytes in flight; `retry_after` says when to come back."""
    QUOTA = "quota"
    """No room: quota, minimum free disk, or a full disk."""
    TOO_LARGE = "too_large"
    """The server takes no chunk of that size."""
    NOT_FOUND = "not_found"
    """Not held."""
    CORRUPT = "corrupt"
    """Was held, but turned out rotten on reading; it is no longer offered."""
    BAD_DIGEST = "bad_digest"
    """The bytes of a PUT do not match its digest."""
    BAD_RANGE = "bad_range"
    """The range asked for is not inside the chunk."""
    SHUTTING_DOWN = "shutting_down"
    """The node is about to stop."""
    CANCELLED = "cancelled"
    """The client cancelled the request before its answer began."""
    UNSUPPORTED = "unsupported"
    """A reserved operation this version does not serve."""
    FAILED = "failed"
    """The server's own disk or code failed."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What a node says of itself. Only a claim: nothing is decided by it alone.

    The two counts of a decoded one are at most `MAX_BELIEVED`.
    """

    name: str
    zone: str
    available_bytes: int
    version: str
    chunks: int


# --- requests ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Have:
    """Which of these chunks do you hold? 1 to `MAX_HAVE` digests. -> Held"""

    id: int
    digests: tuple[Digest, ...]
    lane: Lane = Lane.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Get:
    """Send `length` bytes from `offset`; None: to the end of the chunk. -> Data"""

    id: int
    digest: Digest
    offset: int
    length: int | None
    lane: Lane = Lane.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Put:
    """Keep this chunk for me for `lease_secs`. -> Proceed (unless `inline`), then Stored

    `inline`: the `length` bytes follow at once; otherwise they follow in a Body after Proceed.
    """

    id: int
    digest: Digest
    length: int
    lease_secs: int
    inline: bool
    lane: Lane = Lane.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a Put that was told to proceed; not a request of its own."""

    id: int
    length: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The answer is no longer wanted. Not answered itself; unknown ids are ignored."""

    id: int


@dataclass(frozen=True, slots=True)
class AskInfo:
    """Who are you? -> Info"""

    id: int
    lane: Lane = Lane.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Release:
    """I need these chunks no longer (of those you keep for me). 1 to `MAX_HAVE`. -> Released"""

    id: int
    digests: tuple[Digest, ...]
    lane: Lane = Lane.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Reserved:
    """AUDIT of a later version, without a body: answered with `unsupported`."""

    id: int
    op: int

    @property
    def lane(self) -> Lane:
        return Lane.BACKGROUND


# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """Answers Have: one flag per digest, in the order asked."""

    id: int
    flags: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """Answers Get: `length` bytes follow; `size` is that of the whole chunk."""

    id: int
    size: int
    length: int


@dataclass(frozen=True, slots=True)
class Proceed:
    """Room for the body of a Put is reserved: send it. The one answer that is not final."""

    id: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The chunk is durable, and kept until `until` (Unix seconds); signed as `receipts.py` says."""

    id: int
    issued: int
    until: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Released:
    """Answers Release: for how many of the digests something was kept for the asking peer."""

    id: int
    count: int


@dataclass(frozen=True, slots=True)
class Info:
    """Answers AskInfo."""

    id: int
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Refused:
    """No, for a stable `reason` (`Reason` or a newer word); `detail` is for people.

    `retry_after_ms` is None when asking again will not help by itself.
    """

    id: int
    reason: str
    retry_after_ms: int | None
    detail: str


Request = Have | Get | Put | Body | Cancel | AskInfo | Release | Reserved
Answer = Held | Data | Proceed | Stored | Info | Released | Refused
Message = Request | Answer


def body_length(message: Message) -> int:
    """How many raw bytes follow the header of `message`."""
    match message:
        case Data(length=length) | Body(length=length) | Put(length=length, inline=True):
            return length
        case _:
            return 0
