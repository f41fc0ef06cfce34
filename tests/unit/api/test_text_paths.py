"""File names through JSON."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.node.api.text_paths import path_of_text, text_of_path


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
@settings(deadline=None)
def test_every_name_survives_json_byte_for_byte(raw: bytes) -> None:
    text = json.loads(json.dumps(text_of_path(raw)).encode("ascii"))
    assert os.fsencode(path_of_text(text)) == raw


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff"])
def test_text_that_stands_for_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        path_of_text(text)
