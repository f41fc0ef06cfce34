"""What a get says of a part that it takes over, and what an interrupted transfer leaves."""

from __future__ import annotations

import pytest
from meshnode.cli.invocation import Invocation
from meshnode.cli.progress import TransferProgress

PARTIAL = {
    "type": "partial",
    "path": "/x/.out.part",
    "bytes_kept": 2_000_000,
    "total_bytes": 5_000_000,
}


def _interrupt(events: list[dict[str, object]], verb: str = "get") -> None:
    with TransferProgress(verb, Invocation()) as progress:
        for event in events:
            progress.on_event(event)
        raise KeyboardInterrupt


def test_a_get_that_goes_on_says_what_is_here_already(capsys: pytest.CaptureFixture[str]) -> None:
    with TransferProgress("get", Invocation()) as progress:
        progress.on_event(PARTIAL)
    assert "resuming: 2.0 MB of 5.0 MB already here" in capsys.readouterr().err


def test_an_interrupted_get_says_what_it_keeps_and_how_to_discard_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupt([{**PARTIAL, "bytes_kept": 0}, {"type": "progress", "bytes_done": 3_000_000}])
    told = capsys.readouterr().err
    assert told.startswith("3.0 MB are kept: run the same command again to go on from there")
    assert "remove /x/.out.part*" in told


def test_an_interrupted_get_that_has_nothing_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupt([{**PARTIAL, "bytes_kept": 0}])
    assert capsys.readouterr().err == ""


def test_an_interrupted_put_says_that_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupt([{"type": "progress", "bytes_done": 3_000_000}], "put")
    told = capsys.readouterr().err
    assert told.startswith("3.0 MB are kept for a day: run the same command again to go on")
    with pytest.raises(KeyboardInterrupt):
        _interrupt([], "put")
    assert capsys.readouterr().err == ""
