"""Strict reading of requests: what is wrong is refused and named."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import UsageError
from meshnode.node.api.fields import Fields, fields_of_query

Read = Callable[[Fields], object]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
READS: list[Read] = [
    lambda f: f.text("x"),
    lambda f: f.optional_text("x"),
    lambda f: f.texts("x", most=2),
    lambda f: f.choice("x", ["a", "b"]),
    lambda f: f.flag("x"),
    lambda f: f.integer("x", low=1, high=3),
    lambda f: f.absolute_path("x"),
    lambda f: f.absolute_paths("x"),
    lambda f: f.inner_path("x"),
]


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda f: f.text("x"), None),
        (lambda f: f.text("x"), ""),
        (lambda f: f.text("x"), 7),
        (lambda f: f.text("x"), "x" * 5000),
        (lambda f: f.texts("x", most=2), []),
        (lambda f: f.texts("x", most=2), ["a", "b", "c"]),
        (lambda f: f.texts("x", most=2), ["a", 1]),
        (lambda f: f.choice("x", ["a", "b"]), "c"),
        (lambda f: f.choice("x", ["a", "b"]), ["a"]),
        (lambda f: f.flag("x"), "true"),
        (lambda f: f.flag("x"), 1),
        (lambda f: f.integer("x", low=1, high=3), 0),
        (lambda f: f.integer("x", low=1, high=3), 4),
        (lambda f: f.integer("x", low=1, high=3), True),
        (lambda f: f.integer("x", low=1, high=3), 2.0),
        (lambda f: f.absolute_path("x"), None),
        (lambda f: f.absolute_path("x"), "relative"),
        (lambda f: f.absolute_path("x"), "/a\0b"),
        (lambda f: f.absolute_path("x"), "/\ud800"),
        (lambda f: f.absolute_path("x"), "/" + "x" * 20_000),
        (lambda f: f.absolute_paths("x"), "/not/a/list"),
        (lambda f: f.absolute_paths("x"), ["/fine", "relative"]),
        (lambda f: f.inner_path("x"), "a/../b"),
        (lambda f: f.inner_path("x"), "a\0b"),
        (lambda f: f.inner_path("x"), 3),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(read: Read, value: object) -> None:
    with pytest.raises(UsageError, match=r"'x'"):
        read(Fields({"x": value}))


def test_right_values_come_through() -> None:
    fields = Fields({"p": "/a/b", "n": 2, "f": True, "inner": "./a//b/", "raw": "caf\udce9"})
    assert fields.absolute_path("p") == "/a/b"
    assert fields.integer("n") == 2
    assert fields.flag("f")
    assert fields.inner_path("inner") == b"a/b"
    assert fields.inner_path("raw") == b"caf\xe9"
    fields.done()


@pytest.mark.parametrize("value", [None, "", ".", "/", "./"])
def test_an_inner_path_to_the_root_is_none(value: str | None) -> None:
    assert Fields({"x": value}).inner_path("x") is None


def test_an_unknown_field_is_refused_with_the_nearest_known() -> None:
    fields = Fields({"forse": True})
    fields.flag("force")
    with pytest.raises(UsageError, match="'forse'") as caught:
        fields.done()
    assert "'force'" in caught.value.hint


@pytest.mark.parametrize("request_", [None, [], "text", 3, {1: 2}])
def test_only_an_object_is_a_request(request_: object) -> None:
    with pytest.raises(UsageError, match="JSON object"):
        Fields(request_)


def test_a_long_wrong_value_is_shown_short() -> None:
    with pytest.raises(UsageError) as caught:
        Fields({"x": ["y" * 100_000]}).flag("x")
    assert len(caught.value.message) < 300


@given(JSON)
@settings(deadline=None, max_examples=200)
def test_no_request_raises_anything_but_a_usage_error(value: object) -> None:
    for read in READS:
        for request in (value, {"x": value}):
            try:
                read(Fields(request))
            except UsageError:
                continue


def test_a_query_gives_numbers_and_flags_only_where_they_are_expected() -> None:
    pairs = {"offset": "12", "public": "true", "name": "true", "path": "34", "length": "x"}
    kinds = {"offset": int, "length": int, "public": bool}
    assert fields_of_query(pairs, kinds) == {
        "offset": 12,
        "public": True,
        "name": "true",
        "path": "34",
        "length": "x",
    }


def test_paths_come_in_the_notation_of_this_system() -> None:
    assert os.fsencode(Fields({"x": "/\udcff"}).absolute_path("x")) == b"/\xff"
