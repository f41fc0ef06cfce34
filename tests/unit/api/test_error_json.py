"""Errors across the wire."""

from __future__ import annotations

import pytest
from meshnode import errors
from meshnode.errors import MeshError, NotFoundError, PeerError, PeerRefusedError
from meshnode.node.api.error_json import (
    as_mesh_error,
    error_from_json,
    error_to_json,
    internal_error,
)


def _classes(root: type[MeshError]) -> list[type[MeshError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _classes(child))]


# Other rooms may have private subclasses, imported or not by the time this is collected.
PLAIN = [
    kind
    for kind in _classes(MeshError)
    if kind.__init__ is MeshError.__init__ and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", PLAIN)
def test_every_error_comes_back_as_what_it_was(kind: type[MeshError]) -> None:
    back = error_from_json(error_to_json(kind("what failed", hint="what to do")))
    assert type(back) is kind
    assert (back.message, back.hint) == ("what failed", "what to do")
    assert back.exit_code == kind.exit_code


def test_an_error_with_more_fields_keeps_its_exit_code_and_words() -> None:
    back = error_from_json(error_to_json(PeerRefusedError("no", reason="quota", hint="wait")))
    assert isinstance(back, MeshError)
    assert (back.message, back.hint) == ("no", "wait")
    assert back.exit_code == PeerError.exit_code


def test_an_error_of_a_newer_node_keeps_its_exit_code() -> None:
    told = {"code": "of_next_year", "message": "m", "hint": "h", "exit_code": 4}
    assert error_from_json(told).exit_code == 4


@pytest.mark.parametrize("found", [None, 3, [], {}, {"message": None}, {"code": ["x"]}])
def test_an_error_that_makes_no_sense_is_still_an_error(found: object) -> None:
    assert error_from_json(found).message


def test_a_nurserys_group_is_the_error_inside() -> None:
    inner = NotFoundError("nobody has it")
    group = ExceptionGroup("nursery", [ExceptionGroup("deeper", [inner])])
    assert as_mesh_error(group) is inner


def test_a_group_with_a_bug_in_it_is_a_bug() -> None:
    group = ExceptionGroup("nursery", [NotFoundError("x"), ZeroDivisionError()])
    assert as_mesh_error(group) is None
    assert as_mesh_error(ZeroDivisionError()) is None


def test_a_bug_is_told_by_its_kind_only() -> None:
    error = internal_error(ExceptionGroup("nursery", [ValueError("secret detail")]))
    assert "ValueError" in error.message
    assert "secret" not in str(error)
