"""Peers of other implementations in processes of their own, and how a test talks to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
JS = HERE / "js"
ANSWER_WITHIN = 45.0
_TAIL = 2000


def why_no_js() -> str | None:
    """Why the js-libp2p peer cannot be run here, and what to do; None when it can."""
    if shutil.which("node") is None:
        return "js-libp2p was NOT tested: there is no `node` here (install Node.js 20 or newer)"
    if not (JS / "node_modules" / ".package-lock.json").exists():
        return "js-libp2p was NOT tested: its packages are not installed; run `make interop`"
    return None


def js_command(*arguments: str) -> list[str]:
    return ["node", "peer.mjs", *arguments]


STOCK_COMMAND = [sys.executable, "-m", "tests.interop.stock_peer"]


class ForeignProcess:
    """A running peer. One test at a time talks to it, through `talking`."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._asked = self._answered = 0

    def start(self) -> None:
        self._received = b""
        self._asked = self._answered = 0
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
            self._requests, self._answers = requests, answers
            try:
                peer = ForeignPeer(self)
                await peer.say_hello()
                yield peer
            finally:
                if self._asked != self._answered:
                    self.stop()  # it is busy with what nobody waits for: the next test gets another

    async def ask(self, request: dict[str, object]) -> object:
        self._asked += 1
        line = json.dumps({"id": self._asked, **request}) + "\n"
        with trio.move_on_after(ANSWER_WITHIN):
            await self._requests.send_all(line.encode())
            while b"\n" not in self._received:
                data = await self._answers.receive_some()
                if not data:
                    raise AssertionError(f"The peer's process has ended. {self._complaints()}")
                self._received += data
            line_back, _, self._received = self._received.partition(b"\n")
            self._answered += 1
            reply = json.loads(line_back)
            if "error" in reply:
                raise ForeignError(f"{request['do']}: {reply['error']} {self._complaints()}")
            return reply["result"]
        raise AssertionError(f"No answer to {request} in {ANSWER_WITHIN} s. {self._complaints()}")

    def _complaints(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-_TAIL:].decode(errors="replace")


class ForeignError(AssertionError):
    """The foreign side could not do what it was asked to."""


class ForeignPeer:
    """One side of a check, played by the foreign process toward `of` (our peer id)."""

    def __init__(self, process: ForeignProcess) -> None:
        self._process = process
        self._one_at_a_time = trio.Lock()
        self.peer = self.address = ""
        self.toward = ""

    async def say_hello(self) -> None:
        hello = await self._process.ask({"do": "hello"})
        assert isinstance(hello, dict)
        self.peer, self.address = hello["peer"], hello["address"]

    async def play(self, role: str, **arguments: object) -> object:
        async with self._one_at_a_time:
            return await self._process.ask({"do": role, "peer": self.toward, **arguments})


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[ForeignProcess]:
    process = ForeignProcess(command, folder)
    process.start()
    try:
        yield process
    finally:
        process.stop()
