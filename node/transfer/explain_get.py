"""A get in words: what its time went to, and what to do about it. Pure."""

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
    "resolving": "getting the manifest, which says what the content consists of",
    "finding": "asking the DHT and members who has which chunk",
    "peers": "at least one peer was sending a chunk, or about to",
    "local store": "reading chunks that this node has itself",
    "checking and writing": "checking, decrypting and writing what came",
    "waiting": "every holder had just failed or was busy",
    "preparing": "making folders and reserving space where it was written",
    "checking what was kept": "reading back what an earlier get had left",
    "finishing": "having everything written to the disk before it got its name",
}


def time_lines(trace: Trace) -> list[str]:
    """What went on for how long, the most first. Much of it at the same time."""
    return phase_lines(trace, _PHASES)


def cause(trace: Trace, names: Names) -> str:
    """The one thing that decided how long it took."""
    total = trace.seconds
    # Work of this node goes on while peers send; only waiting for peers alone counts as theirs.
    local = ("checking and writing", "local store", "finishing")
    longest = max((trace.phase(name) for name in local), key=lambda phase: phase.busy)
    searching = trace.phase("finding").share + trace.phase("resolving").share
    if trace.phase("waiting").busy >= _MUCH * total:
        return f"holders that failed or were busy: {share(trace.phase('waiting').busy, total)}"
    if searching >= _MUCH * total:
        return f"the search for the manifest and for holders: {share(searching, total)} of the time"
    if longest.busy >= 2 * _MUCH * total:
        return f"this node: {_PHASES[longest.name]} ({share(longest.busy, total)} of the time)"
    if trace.phase("peers").busy >= _MUCH * total:
        told = f"the peers: {share(trace.phase('peers').busy, total)} of the time they were sending"
        slow = much_slower(trace)
        if slow is not None:
            told += f", {peer_name(slow.peer, names)} much more slowly than the fastest"
        return told
    return "nothing in particular: finding, sending and writing kept each other company"


def work_lines(trace: Trace) -> list[str]:
    """What was done, in numbers."""
    counts = trace.counts
    came = sum(part.nbytes for part in trace.peers)
    lines = [f"{size(came)} from {count(len(trace.peers), 'peer')}"]
    if here := counts.get("bytes_from_store", 0):
        lines[0] += f", {size(here)} from this node's own store"
    extra = [
        (counts.get("retries", 0), "try beyond the first", "tries beyond the first"),
        (counts.get("hedges", 0), "chunk asked of a second peer", "chunks asked of a second peer"),
        (counts.get("moved", 0), "chunk moved to another peer", "chunks moved to another peer"),
    ]
    told = [count(number, one, many) for number, one, many in extra if number]
    return [*lines, "; ".join(told)] if told else lines


def advice(trace: Trace, names: Names) -> list[str]:
    """What to do next; empty when nothing needs doing."""
    lines = [trace.hint] if trace.hint else []
    if trace.outcome == "interrupted":
        lines.append("Get the same again: what has been fetched is not fetched again.")
    liars = [part for part in trace.peers if part.corrupt]
    if liars:
        named = ", ".join(peer_name(part.peer, names) for part in liars[:5])
        lines.append(f"Check the disk and memory of {named}: false bytes came from there.")
    gone = [part for part in trace.peers if part.gave_up and not part.corrupt]
    if gone:
        named = ", ".join(peer_name(part.peer, names) for part in gone[:5])
        lines.append(f"Look after {named}: given up in this get, for the reason told above.")
    slow = much_slower(trace)
    if slow is not None and not liars:
        lines.append(
            f"See what holds up {peer_name(slow.peer, names)} (its disk, its line, other work); "
            "the fastest gave chunks much faster."
        )
    return lines
