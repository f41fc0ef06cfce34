"""A trace in plain words, for `meshnode why`: what the time went to, which peers did what, what
went wrong, what to do next. Pure; each kind of transfer has its own words in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from . import explain_get, explain_put
from .explain_words import NO_NAMES, Names, note_lines, peer_lines, rate, seconds, size
from .trace import Trace, TransferKind


class _Words(Protocol):
    """What the words of one kind of transfer consist of."""

    def cause(self, trace: Trace, names: Names, /) -> str: ...
    def time_lines(self, trace: Trace, /) -> list[str]: ...
    def work_lines(self, trace: Trace, /) -> list[str]: ...
    def advice(self, trace: Trace, names: Names, /) -> list[str]: ...


_WORDS: Mapping[TransferKind, _Words] = {
    "put": explain_put,
    "get": explain_get,
    "stream": explain_get,
}
_VERBS: Mapping[TransferKind, str] = {"put": "took", "get": "gave", "stream": "gave"}


def headline(trace: Trace) -> str:
    """One line: what it was, how it ended, how fast it went."""
    verb = "cat" if trace.kind == "stream" else trace.kind
    told = f"{verb} {trace.name or 'of a link'}: {trace.outcome}, "
    if trace.outcome in ("failed", "interrupted"):
        return f"{told}after {seconds(trace.seconds)}"
    pace = rate(trace.size, trace.seconds)
    return f"{told}{size(trace.size)} in {seconds(trace.seconds)} ({pace})"


def explain(trace: Trace, names: Names = NO_NAMES) -> list[str]:
    """The whole story, as lines without line ends; headings end with a colon, what stands below
    one is indented.

    Args:
        names: what peers call themselves, where that is known.
    """
    words = _WORDS[trace.kind]
    sections = [
        ("what was done", words.work_lines(trace)),
        ("what the time went to (much of it went on at once)", words.time_lines(trace)),
        ("peers", peer_lines(trace, names, _VERBS[trace.kind])),
        ("what happened", note_lines(trace, names)),
        ("next", words.advice(trace, names)),
    ]
    lines = [headline(trace)]
    if trace.error:
        lines.append(f"error: {trace.error}")
    lines.append(f"decided by {words.cause(trace, names)}")
    for heading, found in sections:
        if found:
            lines.append(f"{heading}:")
            lines += [f"  {line}" for line in found]
    return lines


@dataclass(frozen=True, slots=True)
class Explained:
    """A trace with its words, as it goes to a client."""

    trace: Trace
    names: Names = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            **self.trace.to_json(),
            "headline": headline(self.trace),
            "lines": explain(self.trace, self.names),
        }
