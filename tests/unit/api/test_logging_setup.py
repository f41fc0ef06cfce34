"""Logs: where they go, in which form, and what they keep to themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from meshnode.node.logging_setup import set_up_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def fail() -> None:
    secret = bytes(range(65, 75)).decode()
    raise ValueError(len(secret))


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_traceback_in_the_log_holds_no_local_variables(
    capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    set_up_logging(level="info", format=format_)
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    out, err = capsys.readouterr()
    assert out == ""
    assert "ValueError" in err
    assert "ABCDEFGHIJ" not in err


def test_events_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="warning", format="json")
    structlog.get_logger().info("unheard")
    logging.getLogger("library").info("unheard")
    assert capsys.readouterr().err == ""


def test_what_libraries_log_takes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", format="json")
    logging.getLogger("library").warning("it is %s", "late")
    logging.getLogger("libp2p.host").info("chatter")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["logger"], told["level"]) == ("it is late", "library", "warning")


def test_auto_is_json_where_nobody_looks_on(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", format="auto")
    structlog.get_logger().info("hello", data=b"\xff")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
