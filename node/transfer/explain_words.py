"""Words shared by what explains traces: sizes, durations, lists of peers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ...dht.peer_id import PeerId
from .trace import Note, PeerPart, Trace

Names = Mapping[PeerId, str]
"""What peers call themselves, as far as that is known."""
NO_NAMES: Names = MappingProxyType({})

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")
_MAX_PEERS_TOLD = 10
_MAX_NOTES_TOLD = 12
_WORTH_TELLING = 0.02
"""Of the whole time."""
_MUCH_SLOWER = 3.0


def size(nbytes: float) -> str:
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    for unit in _UNITS:
        nbytes /= 1000
        if nbytes < 999.95 or unit == _UNITS[-1]:
            break
    return f"{nbytes:.{1 if nbytes < 99.95 else 0}f} {unit}"


def seconds(duration: float) -> str:
    if duration < 10:
        return f"{duration:.2f} s"
    if duration < 120:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s"


def share(part: float, whole: float) -> str:
    """Part of a duration, in percent."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else "0 %"


def rate(nbytes: float, duration: float) -> str:
    return f"{size(nbytes / duration)}/s" if duration > 0.001 else "at once"


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def peer_name(peer: PeerId, names: Names) -> str:
    name = names.get(peer)
    return f"{name} ({peer.short})" if name else peer.short


def peer_line(part: PeerPart, names: Names, verb: str) -> str:
    """What one peer did: "took 12 MB in 3.1 s (4 MB/s), 2 failures (...)"."""
    told = [f"{verb} {size(part.nbytes)} in {seconds(part.busy)} ({rate(part.nbytes, part.busy)})"]
    if not part.nbytes:
        told = [f"{verb} nothing in {count(part.requests, 'request')}, {seconds(part.busy)}"]
    if part.failures:
        told.append(count(part.failures, "failure"))
    if part.refusals:
        told.append(f"said {count(part.refusals, 'time')} that it was busy")
    if part.hedged:
        told.append(f"was late {count(part.hedged, 'time')}, and another was asked as well")
    if part.corrupt:
        told.append(f"sent false bytes {count(part.corrupt, 'time')}")
    if part.wasted:
        told.append(f"{size(part.wasted)} moved for nothing")
    if part.resting >= 0.1:
        told.append(f"was left alone for {seconds(part.resting)}")
    if part.gave_up:
        told.append(f"was given up: {part.gave_up}")
    elif part.last_error:
        told.append(f"last error: {part.last_error}")
    return f"{peer_name(part.peer, names)}: {'; '.join(told)}"


def peer_lines(trace: Trace, names: Names, verb: str) -> list[str]:
    lines = [peer_line(part, names, verb) for part in trace.peers[:_MAX_PEERS_TOLD]]
    if len(trace.peers) > _MAX_PEERS_TOLD:
        lines.append(f"and {count(len(trace.peers) - _MAX_PEERS_TOLD, 'more peer')} (see --json)")
    return lines


def note_lines(trace: Trace, names: Names) -> list[str]:
    """What happened and when; the first and the last of many."""

    def line(note: Note) -> str:
        who = "" if note.peer is None else f"{peer_name(note.peer, names)}: "
        return f"after {seconds(note.at)}: {who}{note.text}"

    notes = trace.notes
    if len(notes) <= _MAX_NOTES_TOLD and not trace.lost_notes:
        return [line(note) for note in notes]
    half = _MAX_NOTES_TOLD // 2
    between = trace.lost_notes + max(len(notes) - 2 * half, 0)
    first, last = notes[:half], notes[half:][-half:]
    return [*map(line, first), f"({between:,} more)", *map(line, last)]


def phase_lines(trace: Trace, words: Mapping[str, str]) -> list[str]:
    """What went on for how long, the most first; `words` says what a phase is."""
    told = sorted(trace.phases, key=lambda phase: phase.busy, reverse=True)
    return [
        f"{seconds(phase.busy)} ({share(phase.busy, trace.seconds)}): "
        f"{words.get(phase.name, phase.name)}"
        for phase in told
        if phase.busy >= _WORTH_TELLING * trace.seconds
    ]


def much_slower(trace: Trace) -> PeerPart | None:
    """The slowest peer that did work, when it was much slower than the fastest."""
    rates = {
        part.peer: part.nbytes / part.busy for part in trace.peers if part.busy and part.nbytes
    }
    if len(rates) < 2:
        return None
    slow = min(trace.peers, key=lambda part: rates.get(part.peer, float("inf")))
    return slow if rates[slow.peer] * _MUCH_SLOWER < max(rates.values()) else None
