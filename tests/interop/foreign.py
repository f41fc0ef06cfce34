"""Peers of other implementations in processes of their own, and how a test talks to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import IO

import trio

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
JS = HERE / "js"
ANSWER_WITHIN = 45.0
OLDEST_NODE = 20
_TAIL = 2000


@cache
def why_no_js() -> str | None:
    """Why the js-libp2p peer cannot be run here, and what to do; None when it can."""
    if shutil.which("node") is None:
        return f"js-libp2p was NOT tested: no `node` here; install Node.js {OLDEST_NODE} or newer"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        return f"js-libp2p was NOT tested: Node.js {version} is older than {OLDEST_NODE}"
    installed = JS / "node_modules" / ".installed"
    if not installed.exists():
        return "js-libp2p was NOT tested: its packages are not installed; run `make interop`"
    if installed.stat().st_mtime < (JS / "package-lock.json").stat().st_mtime:
        return "js-libp2p was NOT tested: its packages are out of date; run `make interop`"
    return None


def js_command(*arguments: str) -> list[str]:
    return ["node", "peer.mjs", *arguments]


STOCK_COMMAND = [sys.executable, "-m", "tests.interop.stock_peer"]


class ForeignError(AssertionError):
    """The foreign side could not do what it was asked to."""


class ForeignProcess:
    """A peer in a process. One test at a time talks to it, through `talking`."""

    def __init__(self, command: list[str], folder: Path, errors: IO[bytes]) -> None:
        self._command = command
        self._folder = folder
        self._errors = errors
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[ForeignPeer]:
        if self._process is None:
            self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with (
            trio.lowlevel.FdStream(os.dup(self._process.stdin.fileno())) as requests,
            trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno())) as answers,
        ):
            peer = ForeignPeer(requests, answers, self.complaints)
            try:
                await peer.say_hello()
                yield peer
            finally:
                if peer.busy:
                    self.stop()  # with what nobody waits for any more: the next test gets another

    def complaints(self) -> str:
        """The end of what it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-_TAIL:].decode(errors="replace")


class ForeignPeer:
    """One side of a check, played by the foreign process toward our peer id `toward`."""

    def __init__(
        self,
        requests: trio.abc.SendStream,
        answers: trio.abc.ReceiveStream,
        complaints: Callable[[], str],
    ) -> None:
        self.peer = self.address = self.toward = ""
        self.busy = False
        self._requests = requests
        self._answers = answers
        self._complaints = complaints
        self._one_at_a_time = trio.Lock()

    async def say_hello(self) -> None:
        hello = await self._ask({"do": "hello"})
        assert isinstance(hello, dict)
        self.peer, self.address = hello["peer"], hello["address"]

    async def play(self, role: str, **arguments: object) -> object:
        """What the role returned.

        Raises:
            ForeignError: it failed there.
        """
        async with self._one_at_a_time:
            return await self._ask({"do": role, "peer": self.toward, **arguments})

    async def _ask(self, request: dict[str, object]) -> object:
        self.busy = True
        received = b""
        with trio.move_on_after(ANSWER_WITHIN) as late:
            await self._requests.send_all(json.dumps(request).encode() + b"\n")
            while not received.endswith(b"\n"):
                data = await self._answers.receive_some()
                if not data:
                    raise AssertionError(f"The peer's process has ended. {self._complaints()}")
                received += data
        if late.cancelled_caught:
            raise AssertionError(f"No answer to {request} within {ANSWER_WITHIN:g} s.")
        self.busy = False
        answer = json.loads(received)
        if "error" in answer:
            raise ForeignError(f"{request['do']}: {answer['error']} {self._complaints()}")
        return answer["result"]


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[ForeignProcess]:
    with tempfile.TemporaryFile() as errors:
        process = ForeignProcess(command, folder, errors)
        process.start()
        try:
            yield process
        finally:
            process.stop()
