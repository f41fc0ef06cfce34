"""Where an error about one peer ends: whatever it is, the DHT goes on without that peer.

Everything that asks a peer runs inside such a boundary, because what peers send reaches code that
nobody foresaw it would reach. Errors that should not happen are logged with their trace and
counted as `questions_crashed`.
"""

from __future__ import annotations

import structlog

from ..errors import MembershipError, PeerError
from .counters import Counters
from .peer_id import PeerId

_log = structlog.get_logger("meshnode.dht")


def as_peer_error(
    error: Exception, peer: PeerId, counters: Counters
) -> PeerError | MembershipError:
    """`error` as a failure of `peer`, for those who wait for its answer."""
    if isinstance(error, PeerError | MembershipError):
        return error
    counters.add("questions_crashed")
    _log.error("dht_question_crashed", peer=str(peer), error=repr(error), exc_info=error)
    failure = PeerError(f"Asking {peer.short} failed here: {error!r}")
    failure.__cause__ = error
    return failure
