"""Strict reading of a request: each field known, typed and bounded, or a `UsageError` names it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping

from ...errors import UsageError
from .text_paths import path_of_text

MAX_TEXT_CHARS = 4096
MAX_PATH_CHARS = 16384
MAX_SOURCES = 10_000
MAX_OFFSET = 1 << 62
_HINT = "docs/api.md lists the requests and their fields."


class Fields:
    """The fields of one request. Each is taken by name; `done` refuses what nobody took."""

    def __init__(self, request: object) -> None:
        if not isinstance(request, Mapping) or not all(isinstance(key, str) for key in request):
            raise UsageError("The request is not a JSON object.", hint=_HINT)
        self._request: Mapping[str, object] = request
        self._known: set[str] = set()

    def _take(self, name: str) -> object:
        """The field's value; null and absent are the same."""
        self._known.add(name)
        return self._request.get(name)

    def text(self, name: str) -> str:
        """A text that must be there."""
        value = self.optional_text(name)
        if value is None:
            raise UsageError(f"The request lacks the field {name!r}.", hint=_HINT)
        return value

    def optional_text(self, name: str, *, max_chars: int = MAX_TEXT_CHARS) -> str | None:
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= max_chars:
            raise _wrong(name, value, f"a text of 1 to {max_chars} characters")
        return value

    def texts(self, name: str, *, most: int) -> list[str]:
        """A list of 1 to `most` texts."""
        value = self._take(name)
        if not isinstance(value, list) or not 0 < len(value) <= most:
            raise _wrong(name, value, f"a list of 1 to {most} texts")
        for item in value:
            if not isinstance(item, str) or not 0 < len(item) <= MAX_TEXT_CHARS:
                raise _wrong(name, item, f"a list of texts of 1 to {MAX_TEXT_CHARS} characters")
        return value

    def choice(self, name: str, options: Collection[str]) -> str | None:
        value = self._take(name)
        if value is None or (isinstance(value, str) and value in options):
            return value
        raise _wrong(name, value, "one of " + ", ".join(options))

    def flag(self, name: str) -> bool:
        value = self._take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _wrong(name, value, "true or false")

    def integer(self, name: str, *, low: int = 0, high: int = MAX_OFFSET) -> int | None:
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def absolute_path(self, name: str) -> str:
        """A path that must be there; relative ones mean nothing to a node with its own folder."""
        value = self._take(name)
        if value is None:
            raise UsageError(f"The request lacks the field {name!r}.", hint=_HINT)
        return _absolute(name, value)

    def absolute_paths(self, name: str) -> list[str]:
        """A list of 1 to `MAX_SOURCES` absolute paths."""
        value = self._take(name)
        if not isinstance(value, list) or not 0 < len(value) <= MAX_SOURCES:
            raise _wrong(name, value, f"a list of 1 to {MAX_SOURCES} paths")
        return [_absolute(name, item) for item in value]

    def inner_path(self, name: str) -> bytes | None:
        """A path inside a put folder, "/"-separated, relative to its root; "" and "." are None."""
        value = self._take(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > MAX_PATH_CHARS:
            raise _wrong(name, value, f"a text of up to {MAX_PATH_CHARS} characters")
        raw = os.fsencode(_checked(name, value))
        parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise _wrong(name, value, 'a path without ".."')
        return b"/".join(parts) or None

    def done(self) -> None:
        """Every field was one of those taken.

        Raises:
            UsageError: one was not; named, with the nearest known field.
        """
        for name in self._request:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, 1)
                hint = f"Did you mean {near[0]!r}?" if near else _HINT
                raise UsageError(f"The request has an unknown field {name[:80]!r}.", hint=hint)


def fields_of_query(pairs: Mapping[str, str], kinds: Mapping[str, type]) -> dict[str, object]:
    """Query parameters as a request: those of kind `int` and `bool` become what they stand for.

    What does not stand for one stays a text, for `Fields` to refuse.
    """
    words: dict[str, object] = {"true": True, "false": False}
    request: dict[str, object] = {}
    for name, text in pairs.items():
        kind = kinds.get(name, str)
        if kind is int and text.isascii() and text.isdigit() and len(text) < 20:
            request[name] = int(text)
        elif kind is bool:
            request[name] = words.get(text, text)
        else:
            request[name] = text
    return request


def _absolute(name: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH_CHARS:
        raise _wrong(name, value, f"an absolute path of up to {MAX_PATH_CHARS} characters")
    path = _checked(name, value)
    if not os.path.isabs(path):
        raise _wrong(name, value, "an absolute path")
    return path


def _checked(name: str, value: str) -> str:
    try:
        return path_of_text(value)
    except ValueError as error:
        raise _wrong(name, value, "a path of this system") from error


def _wrong(name: str, value: object, allowed: str) -> UsageError:
    found = repr(value)
    shown = found if len(found) <= 80 else f"{found[:77]}..."
    return UsageError(f"The field {name!r} is {shown}; allowed: {allowed}.", hint=_HINT)
