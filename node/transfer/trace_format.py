"""The stored form of a trace: versioned msgpack, bounded, strict on reading."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar, cast, get_args

import msgpack

from ...dht.peer_id import PeerId
from ...errors import FormatError
from .trace import (
    MAX_COUNTS,
    MAX_NOTES,
    MAX_PEERS,
    MAX_PHASES,
    MAX_ROOTS,
    MAX_TEXT_CHARS,
    MAX_WORD_CHARS,
    Note,
    PeerPart,
    Phase,
    Trace,
    TransferKind,
)

_T = TypeVar("_T")

MAX_TRACE_BYTES = 64 * 1024
_VERSION = 1
_MAX_NAME_CHARS = 255
_MAX_ERROR_CHARS = 1000
_DIGEST_BYTES = 32
_KINDS = frozenset(get_args(TransferKind))
_FIELDS, _PHASE_FIELDS, _PEER_FIELDS, _NOTE_FIELDS = 16, 4, 13, 3


def encode_trace(trace: Trace) -> bytes:
    """At most `MAX_TRACE_BYTES`; lists and texts that are too long are cut."""
    peers = trace.peers[:MAX_PEERS]
    while len(data := _pack(trace, peers)) > MAX_TRACE_BYTES and peers:
        peers = peers[:-1]
    return data


def _pack(trace: Trace, peers: tuple[PeerPart, ...]) -> bytes:
    packed: bytes = msgpack.packb(
        (
            _VERSION,
            trace.kind,
            trace.name[:_MAX_NAME_CHARS],
            trace.root,
            float(trace.began),
            float(trace.seconds),
            trace.outcome[:MAX_WORD_CHARS],
            trace.size,
            [_phase_row(phase) for phase in trace.phases[:MAX_PHASES]],
            [_peer_row(part) for part in peers],
            [_note_row(note) for note in trace.notes[:MAX_NOTES]],
            trace.lost_notes,
            [(k[:MAX_WORD_CHARS], v) for k, v in list(trace.counts.items())[:MAX_COUNTS]],
            trace.error[:_MAX_ERROR_CHARS],
            trace.hint[:_MAX_ERROR_CHARS],
            trace.more_roots[:MAX_ROOTS],
        ),
        use_bin_type=True,
        unicode_errors="surrogatepass",  # names are bytes, carried as `os.fsdecode` does
    )
    return packed


def _phase_row(phase: Phase) -> tuple[object, ...]:
    return (phase.name[:MAX_WORD_CHARS], float(phase.busy), float(phase.share), phase.times)


def _peer_row(part: PeerPart) -> tuple[object, ...]:
    return (
        bytes(part.peer),
        part.requests,
        part.nbytes,
        float(part.busy),
        float(part.slowest),
        part.failures,
        part.refusals,
        part.hedged,
        part.wasted,
        part.corrupt,
        float(part.resting),
        part.last_error[:MAX_TEXT_CHARS],
        part.gave_up[:MAX_TEXT_CHARS],
    )


def _note_row(note: Note) -> tuple[object, ...]:
    peer = b"" if note.peer is None else bytes(note.peer)
    return (float(note.at), note.text[:MAX_TEXT_CHARS], peer)


def decode_trace(data: bytes) -> Trace:
    """The inverse of `encode_trace`.

    Raises:
        FormatError: another version, or not a trace.
    """
    if len(data) > MAX_TRACE_BYTES:
        raise FormatError(f"A trace of {len(data)} bytes is too long.")
    try:
        found: object = msgpack.unpackb(
            data,
            use_list=False,
            max_map_len=0,
            max_ext_len=0,
            unicode_errors="surrogatepass",
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise FormatError("A trace is not valid msgpack.") from error
    row = _row(found, _FIELDS)
    if row[0] != _VERSION:
        raise FormatError(f"A trace has version {row[0]!r}, not {_VERSION}.")
    kind = _text(row[1], MAX_WORD_CHARS)
    if kind not in _KINDS:
        raise FormatError("A trace is of an unknown kind.")
    return Trace(
        kind=cast(TransferKind, kind),
        name=_text(row[2], _MAX_NAME_CHARS),
        root=_root(row[3]),
        began=_seconds(row[4]),
        seconds=_seconds(row[5]),
        outcome=_text(row[6], MAX_WORD_CHARS),
        size=_count(row[7]),
        phases=_list(row[8], MAX_PHASES, _phase),
        peers=_list(row[9], MAX_PEERS, _peer),
        notes=_list(row[10], MAX_NOTES, _note),
        lost_notes=_count(row[11]),
        counts=dict(_list(row[12], MAX_COUNTS, _named_count)),
        error=_text(row[13], _MAX_ERROR_CHARS),
        hint=_text(row[14], _MAX_ERROR_CHARS),
        more_roots=_list(row[15], MAX_ROOTS, _root),
    )


def _phase(found: object) -> Phase:
    name, busy, share, times = _row(found, _PHASE_FIELDS)
    return Phase(_text(name, MAX_WORD_CHARS), _seconds(busy), _seconds(share), _count(times))


def _peer(found: object) -> PeerPart:
    row = _row(found, _PEER_FIELDS)
    if type(row[0]) is not bytes:
        raise FormatError("A trace names a malformed peer.")
    return PeerPart(
        peer=PeerId.from_bytes(row[0]),
        requests=_count(row[1]),
        nbytes=_count(row[2]),
        busy=_seconds(row[3]),
        slowest=_seconds(row[4]),
        failures=_count(row[5]),
        refusals=_count(row[6]),
        hedged=_count(row[7]),
        wasted=_count(row[8]),
        corrupt=_count(row[9]),
        resting=_seconds(row[10]),
        last_error=_text(row[11], MAX_TEXT_CHARS),
        gave_up=_text(row[12], MAX_TEXT_CHARS),
    )


def _note(found: object) -> Note:
    at, text, peer = _row(found, _NOTE_FIELDS)
    if type(peer) is not bytes:
        raise FormatError("A trace names a malformed peer.")
    named = PeerId.from_bytes(peer) if peer else None
    return Note(_seconds(at), _text(text, MAX_TEXT_CHARS), named)


def _named_count(found: object) -> tuple[str, int]:
    name, count = _row(found, 2)
    return _text(name, MAX_WORD_CHARS), _count(count)


def _row(found: object, fields: int) -> tuple[object, ...]:
    if type(found) is not tuple or len(found) != fields:
        raise FormatError("A trace has a malformed row.")
    return found


def _list(found: object, most: int, read: Callable[[object], _T]) -> tuple[_T, ...]:
    if type(found) is not tuple or len(found) > most:
        raise FormatError("A trace has a malformed list.")
    return tuple(read(item) for item in found)


def _text(found: object, most: int) -> str:
    if type(found) is not str or len(found) > most:
        raise FormatError("A trace has a malformed text.")
    return found


def _seconds(found: object) -> float:
    if type(found) is not float or not math.isfinite(found) or found < 0.0:
        raise FormatError("A trace has a malformed time.")
    return found


def _count(found: object) -> int:
    if type(found) is not int or found < 0:
        raise FormatError("A trace has a malformed count.")
    return found


def _root(found: object) -> bytes:
    if type(found) is not bytes or len(found) not in (0, _DIGEST_BYTES):
        raise FormatError("A trace has a malformed root.")
    return found
