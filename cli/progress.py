"""The progress of one transfer on the terminal: bytes, rate, time left. Silent elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from .invocation import Invocation
from .text import size, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_MAX_NAME_CHARS = 40


class TransferProgress:
    """Feed it the events of a transfer inside a `with` block."""

    def __init__(self, verb: str, invocation: Invocation) -> None:
        self._verb = verb
        self._invocation = invocation
        self._verbose = bool(invocation.verbose)
        self._part = ""
        """Where a get writes until all of it is there."""
        self._done = 0
        self._total: int | None = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if invocation.shows_progress:
            self._bar = _make_bar()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._task = self._bar.add_task(self._verb, total=None, on_peers="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if isinstance(error, KeyboardInterrupt) and self._done:
            self._tell_how_to_go_on()

    def _tell_how_to_go_on(self) -> None:
        if self._verb == "put":
            self._invocation.note(
                f"{size(self._done)} are kept for a day: run the same command again to go on;"
                " what is here and on peers is not sent again"
            )
        elif self._part:
            self._invocation.note(
                f"{size(self._done)} are kept: run the same command again to go on from there;"
                f" to discard them, remove {self._part}*"
            )

    def on_event(self, event: dict[str, object]) -> None:
        """Show one event; of no concern when nothing is shown."""
        match event:
            case {"type": "partial", "path": path, "bytes_kept": int(kept), "total_bytes": total}:
                self._part, self._done = visible(path), kept
                if kept:
                    self._invocation.note(f"resuming: {size(kept)} of {size(total)} already here")
            case {"type": "progress", "bytes_done": int(done)}:
                self._done = done
        if self._bar is None or self._task is None:
            return
        match event:
            case {"type": "started", "name": name, "total_bytes": total}:
                self._add_total(total)
                text = f"{self._verb} {_short(name)}"
                self._bar.update(self._task, description=text, total=self._total)
            case {"type": "progress", "bytes_done": int(done)}:
                self._bar.update(self._task, completed=done, on_peers=_on_peers(event))
            case {"type": "file", "path": path, "reason": reason}:
                self._say(f"left out: {visible(path)}: {visible(reason)}")
            case {"type": "peer", "peer": peer, "reason": reason} if self._verbose:
                self._say(f"peer {visible(peer)[-8:]}: {visible(reason)}")

    def _add_total(self, total: object) -> None:
        if self._total is None or not isinstance(total, int):
            self._total = None
        else:
            self._total += total

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)


def _make_bar() -> Progress:
    from rich.console import Console  # start-up time
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[on_peers]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )


def _on_peers(event: dict[str, object]) -> str:
    """A put: what the bar shows is durable here; this is what peers have acknowledged."""
    held, wanted = event.get("bytes_held"), event.get("bytes_wanted")
    return f"on peers: {size(held)} of {size(wanted)}" if wanted else ""


def _short(name: object) -> str:
    text = visible(name)
    return text if len(text) <= _MAX_NAME_CHARS else f"{text[: _MAX_NAME_CHARS - 3]}..."
