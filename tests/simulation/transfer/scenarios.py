"""What can be wrong with the peers of a get, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .modelled import CHUNK, ModelledPeer, Outcome, make_peers, run_get

RATE = 20e6


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Callable[[Sequence[ModelledPeer], int], None]
    """(peers, bytes of the whole get)"""
    needs_others: bool = True


def _nothing(peers: Sequence[ModelledPeer], total: int) -> None:
    pass


def _slow(peers: Sequence[ModelledPeer], total: int) -> None:
    peers[0].rate /= 10


def _stall(peers: Sequence[ModelledPeer], total: int) -> None:
    share = total // len(peers) // 3
    peers[0].stalls_after = share - share % CHUNK + CHUNK // 2


def _corrupt(peers: Sequence[ModelledPeer], total: int) -> None:
    peers[0].corrupts = True


def _fail(peers: Sequence[ModelledPeer], total: int) -> None:
    for peer in peers:
        peer.fails = 0.3


def _leave(peers: Sequence[ModelledPeer], total: int) -> None:
    for peer in peers[1:]:
        peer.leaves_after = total // len(peers) // 2 + CHUNK // 2


FAULTS = (
    Fault("none", _nothing, needs_others=False),
    Fault("one 10x slower", _slow),
    Fault("one stalls mid-chunk", _stall),
    Fault("one corrupts", _corrupt),
    Fault("30 % of requests fail", _fail),
    Fault("all but one leave mid-way", _leave),
)
_BY_NAME = {fault.name: fault for fault in FAULTS}


def struck_peers(count: int, fault: str, rtt: float, chunks: int) -> list[ModelledPeer]:
    """`count` peers, something wrong with them."""
    peers = make_peers(count, rtt=rtt, rate=RATE)
    _BY_NAME[fault].strike(peers, chunks * CHUNK)
    return peers


async def scenario(
    count: int,
    fault: str,
    rtt: float,
    chunks: int,
    home: Path,
    *,
    seed: int = 1,
    **settings: object,
) -> Outcome:
    """One get from `count` peers."""
    return await run_get(
        struck_peers(count, fault, rtt, chunks), chunks, home, seed=seed, **settings
    )


def ideal_seconds(count: int, fault: str, rtt: float, chunks: int) -> float:
    """If no byte came too late or twice, and no time were lost."""
    total = chunks * CHUNK
    peers = struck_peers(count, fault, rtt, chunks)
    if fault == "one corrupts":
        return total / (RATE * (count - 1)) + rtt
    gone = [p for p in peers if p.stalls_after is not None or p.leaves_after is not None]
    limits = sorted((p.stalls_after or p.leaves_after or 0) for p in gone)
    # Those that go deliver what they deliver side by side with the rest, who do the rest alone.
    left, seconds = float(total), 0.0
    if gone:
        seconds = limits[0] / RATE
        left -= seconds * sum(peer.rate for peer in peers)
    staying = [peer for peer in peers if peer not in gone]
    return seconds + left / sum(peer.rate for peer in staying) + rtt
