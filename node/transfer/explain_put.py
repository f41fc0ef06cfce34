"""A put in words: what its time went to, and what to do about it. Pure."""

from __future__ import annotations

from .explain_words import (
    Names,
    count,
    much_slower,
    peer_name,
    phase_lines,
    share,
    size,
)
from .trace import Trace

_MUCH = 0.4

_PHASES = {
    "waiting for room": "this node had chunks ready, and peers took them no faster",
    "last copies": "everything was read and stored here; the last copies were being made",
    "reading": "reading what was to be put, and cutting it",
    "sealing": "compressing, encrypting and hashing chunks",
    "storing": "making chunks durable on this node's disk",
    "publishing": "giving the manifest to the DHT",
    "announcing": "telling the DHT who has what",
    "confirming": "reading back a sample from peers, to see that it is there",
    "asking after copies": "asking peers what they still have of an earlier put",
    "peers": "at least one peer was taking a chunk",
    "peers full": "a copy waited because every suitable peer had as much under way as it can take",
    "peers resting": "a copy waited because every candidate had just failed or was busy",
}


def time_lines(trace: Trace) -> list[str]:
    """What went on for how long, the most first. Much of it at the same time."""
    return phase_lines(trace, _PHASES)


def cause(trace: Trace, names: Names) -> str:
    """The one thing that decided how long it took."""
    total = trace.seconds
    waited = trace.phase("waiting for room").busy + trace.phase("last copies").busy
    if waited >= _MUCH * total:
        slow = much_slower(trace)
        told = f"the peers: {share(waited, total)} of the time went by waiting for their receipts"
        if slow is not None:
            told += f", {peer_name(slow.peer, names)} being much slower than the fastest"
        return told
    local = [trace.phase(name) for name in ("reading", "sealing", "storing")]
    longest = max(local, key=lambda phase: phase.busy)
    if longest.busy >= _MUCH * total:
        return f"this node: {_PHASES[longest.name]} ({share(longest.busy, total)} of the time)"
    asked = trace.phase("confirming").busy + trace.phase("publishing").busy
    asked += trace.phase("announcing").busy + trace.phase("asking after copies").busy
    if asked >= _MUCH * total:
        return f"questions to peers and to the DHT ({share(asked, total)} of the time)"
    return "nothing in particular: reading, storing and sending kept each other company"


def work_lines(trace: Trace) -> list[str]:
    """What was done, in numbers."""
    counts = trace.counts
    lines = [
        f"{count(counts.get('chunks', 0), 'chunk')}, {counts.get('new_chunks', 0):,} of them new "
        f"to this node; {size(counts.get('bytes_sent', 0))} sent to peers"
    ]
    if found := counts.get("copies_found", 0):
        copies = "copy that was" if found == 1 else "copies that were"
        lines.append(f"{found:,} {copies} on peers already, from an earlier put; not sent again")
    if counts.get("retries", 0) or counts.get("hedges", 0):
        lines.append(
            f"{count(counts.get('retries', 0), 'try', 'tries')} beyond the first; "
            f"{count(counts.get('hedges', 0), 'late copy', 'late copies')} begun a second time"
        )
    if trace.outcome == "weak":
        lines.append(
            f"{counts.get('copies', 0)} of {counts.get('wanted_copies', 0)} copies of the weakest "
            "chunk, this node's included"
        )
    return lines


def advice(trace: Trace, names: Names) -> list[str]:
    """What to do next; empty when nothing needs doing."""
    lines = [trace.hint] if trace.hint else []
    if trace.outcome == "interrupted":
        lines.append(
            "Put the same again within a day: what is here and on peers is not sent again."
        )
    if trace.outcome == "weak":
        lines.append(
            "Start or connect more nodes (`meshnode peers`), then put the same again: only what "
            "is missing is sent."
        )
    gone = [part for part in trace.peers if part.gave_up]
    if gone:
        named = ", ".join(peer_name(part.peer, names) for part in gone[:5])
        lines.append(f"Look after {named}: given up in this put, for the reason told above.")
    waited = trace.phase("waiting for room").busy + trace.phase("last copies").busy
    slow = much_slower(trace)
    if waited < _MUCH * trace.seconds:
        if trace.phase("storing").busy >= _MUCH * trace.seconds:
            lines.append("This node's disk sets the pace: a faster one would help, peers not.")
    elif slow is not None:
        lines.append(
            f"See what holds up {peer_name(slow.peer, names)} (its disk, its line, other work); "
            "the others took chunks much faster."
        )
    elif not gone and trace.outcome == "stored":
        lines.append(
            "Over a long or wide line, performance.chunks.max_concurrent_uploads = "
            '"auto" may fill it better; else it is what those peers and their disks can take.'
        )
    return lines
