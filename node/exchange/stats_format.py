"""The stored form of a peer's statistics: versioned msgpack, strict on reading."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgpack

from ...errors import FormatError

_VERSION = 1
_MAX_SAMPLES = 1024
_MAX_BYTES = 16 * 1024
_COUNTS = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Version 1. Pairs are (sum, weight) of the decayed estimators, seconds and bytes."""

    latency: tuple[float, float]
    latencies: tuple[float, ...]
    outcomes: tuple[bool, ...]
    download: tuple[float, float]
    upload: tuple[float, float]
    counts: tuple[int, int, int, int, int, int]
    """Bytes received, bytes sent, requests, failures, refusals, duplicates."""
    breaker: tuple[int, int]
    """Failures in a row, trips."""
    last_error: str
    last_error_at: float | None


def encode_snapshot(snapshot: Snapshot) -> bytes:
    packed: bytes = msgpack.packb(
        (
            _VERSION,
            snapshot.latency,
            snapshot.latencies,
            snapshot.outcomes,
            snapshot.download,
            snapshot.upload,
            snapshot.counts,
            snapshot.breaker,
            snapshot.last_error,
            snapshot.last_error_at,
        ),
        use_bin_type=True,
    )
    return packed


def decode_snapshot(data: bytes) -> Snapshot:
    """The inverse of `encode_snapshot`.

    Raises:
        FormatError: another version, or not a statistics record.
    """
    if len(data) > _MAX_BYTES:
        raise FormatError(f"A statistics record of {len(data)} bytes is too long.")
    try:
        array: object = msgpack.unpackb(data, use_list=False, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise FormatError("A statistics record is not valid msgpack.") from error
    if type(array) is not tuple or not array or array[0] != _VERSION or len(array) != 10:
        raise FormatError("A statistics record is not of version 1.")
    _, latency, latencies, outcomes, download, upload, counts, breaker, error_text, at = array
    return Snapshot(
        latency=_pair(latency),
        latencies=_floats(latencies),
        outcomes=tuple(_flag(item) for item in _items(outcomes)),
        download=_pair(download),
        upload=_pair(upload),
        counts=_counts(counts),
        breaker=_breaker(breaker),
        last_error=_error_text(error_text),
        last_error_at=None if at is None else _float(at),
    )


def _items(value: object) -> tuple[object, ...]:
    if type(value) is not tuple or len(value) > _MAX_SAMPLES:
        raise FormatError("A statistics record has a malformed list.")
    return value


def _float(value: object) -> float:
    if type(value) is not float or not math.isfinite(value) or value < 0.0:
        raise FormatError("A statistics record has a malformed number.")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise FormatError("A statistics record has a malformed count.")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise FormatError("A statistics record has a malformed outcome.")
    return value


def _floats(value: object) -> tuple[float, ...]:
    return tuple(_float(item) for item in _items(value))


def _pair(value: object) -> tuple[float, float]:
    pair = _floats(value)
    if len(pair) != 2:
        raise FormatError("A statistics record has a malformed pair.")
    return pair


def _counts(value: object) -> tuple[int, int, int, int, int, int]:
    counts = tuple(_count(item) for item in _items(value))
    if len(counts) != _COUNTS:
        raise FormatError("A statistics record has a wrong number of counts.")
    received, sent, requests, failures, refusals, duplicates = counts
    return received, sent, requests, failures, refusals, duplicates


def _breaker(value: object) -> tuple[int, int]:
    counts = tuple(_count(item) for item in _items(value))
    if len(counts) != 2:
        raise FormatError("A statistics record has a malformed breaker.")
    return counts


def _error_text(value: object) -> str:
    if type(value) is not str:
        raise FormatError("A statistics record has a malformed error text.")
    return value
