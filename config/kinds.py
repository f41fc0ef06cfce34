"""Kinds of values a setting can have: how each is read, checked, written and explained.

A kind reads two notations: what a TOML file holds (`parse`), and plain text from an environment
variable or a command line (`parse_text`). Both raise `ValueError` with the reason, or with no text
when `allowed` says it all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from .addresses import ADDRESS_EXAMPLE, parse_address
from .schedule import SCHEDULE_EXAMPLE, format_entry, parse_entry
from .sizes import SIZE_EXAMPLES, format_rate, format_size, parse_rate, parse_size

T = TypeVar("T")
Word = TypeVar("Word", bound=str)

MAX_LIST_ITEMS = 64


class Kind(Protocol[T]):
    """One kind of value."""

    @property
    def type_name(self) -> str: ...
    @property
    def allowed(self) -> str:
        """What is allowed, to follow the word "allowed:"."""
        ...

    def parse(self, found: object) -> T: ...
    def parse_text(self, text: str) -> T: ...
    def to_toml(self, value: T) -> str: ...


@dataclass(frozen=True, slots=True)
class Integer:
    low: int
    high: int
    type_name: str = "integer"

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def parse(self, found: object) -> int:
        if not isinstance(found, int) or isinstance(found, bool):
            raise ValueError
        if not self.low <= found <= self.high:
            raise ValueError
        return found

    def parse_text(self, text: str) -> int:
        return self.parse(_integer(text))

    def to_toml(self, value: int) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class IntegerOrAuto:
    number: Integer
    type_name: str = 'integer or "auto"'

    @property
    def allowed(self) -> str:
        return f'{self.number.allowed}, or "auto"'

    def parse(self, found: object) -> int | Literal["auto"]:
        return "auto" if found == "auto" else self.number.parse(found)

    def parse_text(self, text: str) -> int | Literal["auto"]:
        return self.parse("auto" if text.strip() == "auto" else _integer(text))

    def to_toml(self, value: int | Literal["auto"]) -> str:
        return json.dumps(value)


@dataclass(frozen=True, slots=True)
class Seconds:
    low: float
    high: float
    type_name: str = "number"

    @property
    def allowed(self) -> str:
        return f"a number of seconds from {self.low:g} to {self.high:g}"

    def parse(self, found: object) -> float:
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise ValueError
        if not self.low <= found <= self.high:  # not a number is neither
            raise ValueError
        return float(found)

    def parse_text(self, text: str) -> float:
        if len(text) > 32:
            raise ValueError
        try:
            number = float(text)
        except ValueError:
            raise ValueError from None
        return self.parse(number)

    def to_toml(self, value: float) -> str:
        return str(int(value)) if value.is_integer() else repr(value)


@dataclass(frozen=True, slots=True)
class Size:
    low: int
    high: int
    zero: str = ""
    """What 0 means where 0 lies outside the bounds but is allowed; empty when it is not."""
    type_name: str = "size"

    @property
    def allowed(self) -> str:
        zero = f", or 0 ({self.zero})" if self.zero else ""
        bounds = f"{format_size(self.low)} to {format_size(self.high)}"
        return f"a size from {bounds}{zero}, in {SIZE_EXAMPLES}"

    def parse(self, found: object) -> int:
        if isinstance(found, str):
            found = parse_size(found)
        if not isinstance(found, int) or isinstance(found, bool):
            raise ValueError
        if not self.low <= found <= self.high and not (self.zero and found == 0):
            raise ValueError
        return found

    def parse_text(self, text: str) -> int:
        return self.parse(text)

    def to_toml(self, value: int) -> str:
        return json.dumps(format_size(value)) if value else "0"


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes per second; 0 sets no limit."""

    low: int
    high: int
    type_name: str = "bytes per second"

    @property
    def allowed(self) -> str:
        bounds = f"{format_rate(self.low)} to {format_rate(self.high)}"
        return f'0 (no limit), or {bounds}, in bytes per second or text such as "10 MB/s"'

    def parse(self, found: object) -> int:
        if isinstance(found, str):
            found = parse_rate(found)
        if not isinstance(found, int) or isinstance(found, bool):
            raise ValueError
        if found and not self.low <= found <= self.high:
            raise ValueError
        return found

    def parse_text(self, text: str) -> int:
        return self.parse(text)

    def to_toml(self, value: int) -> str:
        return json.dumps(format_rate(value)) if value else "0"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Entries of a timetable of bandwidth limits, in the form `format_entry` gives them."""

    type_name: str = "list of timetable entries"

    @property
    def allowed(self) -> str:
        return f"a list of at most {MAX_LIST_ITEMS} entries such as {SCHEDULE_EXAMPLE}"

    def parse(self, found: object) -> tuple[str, ...]:
        return tuple(self._checked(item) for item in _items(found))

    def parse_text(self, text: str) -> tuple[str, ...]:
        # Days are separated by commas, so entries cannot be.
        return self.parse(_split(text, ";"))

    def to_toml(self, value: tuple[str, ...]) -> str:
        return json.dumps(list(value))

    def _checked(self, item: object) -> str:
        if not isinstance(item, str):
            raise ValueError(f"{item!r:.60} is not text")
        try:
            return format_entry(parse_entry(item))
        except ValueError as error:
            raise ValueError(f"{item[:80]!r}: {error}") from None


@dataclass(frozen=True, slots=True)
class Boolean:
    type_name: str = "boolean"
    allowed: str = "true or false"

    def parse(self, found: object) -> bool:
        if not isinstance(found, bool):
            raise ValueError
        return found

    def parse_text(self, text: str) -> bool:
        word = text.strip().lower()
        if word in ("true", "yes", "on", "1"):
            return True
        if word in ("false", "no", "off", "0"):
            return False
        raise ValueError

    def to_toml(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True, slots=True)
class Choice(Generic[Word]):
    options: tuple[Word, ...]
    type_name: str = "text"

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(json.dumps(option) for option in self.options)

    def parse(self, found: object) -> Word:
        for option in self.options:
            if found == option:
                return option
        raise ValueError

    def parse_text(self, text: str) -> Word:
        return self.parse(text.strip())

    def to_toml(self, value: Word) -> str:
        return json.dumps(value)


@dataclass(frozen=True, slots=True)
class Label:
    """A short name that goes to other members and into tables and logs."""

    max_chars: int
    type_name: str = "text"

    @property
    def allowed(self) -> str:
        return f"1 to {self.max_chars} printable characters, no space at either end"

    def parse(self, found: object) -> str:
        if not isinstance(found, str) or not 0 < len(found) <= self.max_chars:
            raise ValueError
        if not found.isprintable() or found != found.strip():
            raise ValueError
        return found

    def parse_text(self, text: str) -> str:
        return self.parse(text)

    def to_toml(self, value: str) -> str:
        return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Addresses:
    """A list of multiaddrs of one use."""

    use: Literal["listen", "announce", "dial"]
    type_name: str = "list of multiaddrs"

    @property
    def allowed(self) -> str:
        rule = {
            "listen": f"such as {ADDRESS_EXAMPLE}: numeric, without /p2p/; port 0 picks a free one",
            "announce": f"such as {ADDRESS_EXAMPLE}: dialable, without /p2p/",
            "dial": f"such as {ADDRESS_EXAMPLE}/p2p/12D3Koo...: dialable, with the peer's id",
        }
        return f"a list of at most {MAX_LIST_ITEMS} multiaddrs {rule[self.use]}"

    def parse(self, found: object) -> tuple[str, ...]:
        # A repeated address is one address; the order is the user's.
        return tuple(dict.fromkeys(self._checked(item) for item in _items(found)))

    def parse_text(self, text: str) -> tuple[str, ...]:
        return self.parse(_split(text, ","))

    def to_toml(self, value: tuple[str, ...]) -> str:
        return json.dumps(list(value))

    def _checked(self, item: object) -> str:
        if not isinstance(item, str):
            raise ValueError(f"{item!r:.60} is not text")
        try:
            address = parse_address(item)
        except ValueError as error:
            raise ValueError(f"{item[:80]!r}: {error}") from None
        if (address.peer is not None) != (self.use == "dial"):
            verb = "must end" if self.use == "dial" else "must not end"
            raise ValueError(f"{item[:80]!r} {verb} in /p2p/ and a peer id")
        if self.use == "listen" and not address.is_numeric:
            raise ValueError(f"{item[:80]!r}: a node can only listen on a numeric address")
        if self.use != "listen" and not address.is_dialable:
            raise ValueError(f"{item[:80]!r}: nobody can dial that")
        return item


def _items(found: object) -> Sequence[object]:
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise ValueError
    if len(found) > MAX_LIST_ITEMS:
        raise ValueError(f"{len(found)} are too many")
    return found


def _split(text: str, separator: str) -> object:
    """A list as people write it: as in TOML, or its items with separators between."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(separator) if item.strip()]
    try:
        found: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not a list") from None
    return found


def _integer(text: str) -> int:
    digits = text.strip().replace("_", "")
    if not 0 < len(digits) <= 20 or not digits.removeprefix("-").isdecimal():
        raise ValueError
    return int(digits)
