"""Nodes behind bad lines: four that keep content, and one that puts and gets it.

The fifth listens nowhere, so that it dials everybody, and whatever passes between it and a holder
passes that holder's front. Holders announce their fronts, and so meet each other there, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ..testnet import MESHNODE, Testnet, TestnetNode, open_testnet
from .fault_proxy import FaultProxy, open_fault_proxy

HOLDERS = 4
_LONGEST_SECS = 90.0
_SILENT_SECS = 30.0
"""So long a transfer may go on without a byte through any front."""
_OFFERS_SECS = 30.0
_POLL_SECS = 0.02


class WrongOutcome(Exception):
    """A transfer did not end as it must; the message says how."""


def require(met: bool, otherwise: str) -> None:
    if not met:
        raise WrongOutcome(otherwise)


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that came to its end. Seconds of wall time, its own start included."""

    code: int
    document: dict[str, Any]
    """What `--json` printed."""
    seconds: float
    message: str
    """What it said on standard error."""


Step = Callable[[], None]


class Lab:
    """What scenarios work with; one at a time."""

    def __init__(self, mesh: Testnet, proxy: FaultProxy, work: Path, size: int, seed: int) -> None:
        self.proxy = proxy
        self.holders = mesh.nodes[:-1]
        self.client = mesh.nodes[-1]
        self.work = work
        self.size = size
        self.rng = random.Random(seed)
        self._files = 0

    # --- content ------------------------------------------------------------------------------

    def make_file(self) -> Path:
        """`size` bytes nobody has put before."""
        self._files += 1
        path = self.work / f"content-{self._files}"
        with path.open("wb") as out:
            for left in range(self.size, 0, -(1 << 20)):
                out.write(self.rng.randbytes(min(left, 1 << 20)))
        return path

    def keep(self, file: Path, copies: int) -> str:
        """Put it on the first holder; the link. The client is stopped, so as to keep no copy."""
        self._stop_client()
        self._until_offers(self.holders[0], copies - 1)
        done = self.holders[0].must("--json", "put", "--replication", str(copies), file)
        link: str = json.loads(done)["sources"][0]["link"]
        return link

    # --- nodes --------------------------------------------------------------------------------

    def fresh_client(self, **performance: object) -> None:
        """The client as if it had never met anybody: no chunks, no statistics of peers.

        Keywords are keys of `[performance.chunks]`; all others have their defaults.
        """
        node = self.client
        self._stop_client()
        shutil.rmtree(node.home / "data", ignore_errors=True)
        kept = {k: v for k, v in node.config.items() if not k.startswith("performance.")}
        given = {f"performance.chunks.{key}": str(value) for key, value in performance.items()}
        node.config = {**kept, **given}
        (node.home / "config.toml").unlink(missing_ok=True)
        node.configure()
        self.start_client()

    def _stop_client(self) -> None:
        self.client.signal(signal.SIGTERM)
        if not self.client.reap(10):
            self.client.kill()

    def start_client(self) -> None:
        self.client.start()
        self.client.wait_ready(len(self.holders))
        self._until_offers(self.client, len(self.holders))

    def heal(self) -> None:
        """All lines plain, all holders running."""
        self.proxy.heal()
        for node in self.holders:
            node.signal(signal.SIGCONT)
        dead = [node for node in self.holders if node.pid is None]
        for node in dead:
            node.start()
        for node in dead:
            node.wait_ready(len(self.holders) - 1)

    def _until_offers(self, node: TestnetNode, count: int) -> None:
        deadline = time.monotonic() + _OFFERS_SECS
        while True:
            peers = _ask(node, "GET", "peers")["peers"]
            if sum(peer["available_bytes"] is not None for peer in peers) >= count:
                return
            require(time.monotonic() < deadline, f"{node.name} does not learn what others offer")
            time.sleep(_POLL_SECS)

    # --- transfers ----------------------------------------------------------------------------

    def run(self, *words: str | Path, at: float = 0.0, then: Step | None = None) -> Ended:
        """One command of the client. When `at` of the content's size has passed the fronts, do
        `then` (once).

        Raises:
            WrongOutcome: it hangs, or ends before `then`.
        """
        before = sum(self.proxy.passed())
        began = moved_at = time.monotonic()
        moved = 0
        with subprocess.Popen(
            [*MESHNODE, "--json", *map(str, words)],
            env=self.client.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                while process.poll() is None:
                    now, passed = time.monotonic(), sum(self.proxy.passed()) - before
                    if passed > moved:
                        moved, moved_at = passed, now
                    if then is not None and moved >= at * self.size:
                        then()
                        then = None
                    require(now - moved_at < _SILENT_SECS, f"hangs: no byte for {_SILENT_SECS:g} s")
                    require(now - began < _LONGEST_SECS, f"not done after {_LONGEST_SECS:g} s")
                    time.sleep(_POLL_SECS)
            except BaseException:
                process.kill()
                raise
            seconds = time.monotonic() - began
            out, err = process.communicate()
        require(then is None, f"ended (exit code {process.returncode}) before anything was done")
        document = json.loads(out) if out.strip() else {}
        return Ended(process.returncode, document, seconds, err.strip())

    def why(self, link: str) -> dict[str, Any]:
        """The trace of the client's latest transfer of `link`."""
        transfers = _ask(self.client, "POST", "why", link=link)["result"]["transfers"]
        require(bool(transfers), "the transfer left no trace")
        trace: dict[str, Any] = transfers[0]
        return trace

    def destination(self) -> Path:
        """A place in a folder of its own, for one get."""
        self._files += 1
        folder = self.work / f"got-{self._files}"
        folder.mkdir()
        return folder / "copy"


def _ask(node: TestnetNode, method: str, route: str, **fields: object) -> dict[str, Any]:
    """What the node's API answers: the same as the command prints, for a tenth of the time."""
    transport = httpx.HTTPTransport(uds=str(node.socket), verify=False)
    with httpx.Client(transport=transport, base_url="http://meshnode/v1/", timeout=30) as api:
        answer = api.request(method, route, json=fields or None).raise_for_status()
        # Of an answer in lines the last one has the result.
        document: dict[str, Any] = json.loads(answer.text.splitlines()[-1])
        return document


def check_whole(file: Path, copy: Path) -> None:
    """The copy has the file's bytes, and nothing lies beside it.

    Raises:
        WrongOutcome
    """
    require(copy.is_file(), "there is no copy")
    require(_digest(copy) == _digest(file), "the copy has other bytes")
    beside = sorted(path.name for path in copy.parent.iterdir() if path != copy)
    require(not beside, f"left beside the copy: {', '.join(beside)}")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage_since(node: TestnetNode, before: dict[Path, int], rng: random.Random) -> None:
    """Flip a byte in every 64 KiB of what was added to the node's segments since `segments`."""
    for path, size in segments(node).items():
        with path.open("r+b") as file:
            for start in range(before.get(path, 0), size, 1 << 16):
                file.seek(start + rng.randrange(min(1 << 16, size - start)))
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 0x55]))


def segments(node: TestnetNode) -> dict[Path, int]:
    """The files that hold the node's chunks, with their sizes."""
    return {path: path.stat().st_size for path in (node.home / "data/segments").glob("*.seg")}


@contextlib.contextmanager
def open_lab(size: int, seed: int, holders: int = HOLDERS) -> Iterator[Lab]:
    """Holders, fronts and client; contents of `size` bytes."""
    ports = _free_ports(holders)
    targets = [("127.0.0.1", port) for port in ports]
    with open_fault_proxy(targets, seed) as proxy:

        def config_of(number: int) -> dict[str, str]:
            if number > holders:
                return {"network.listen": "[]"}
            return {
                "network.listen": f'["/ip4/127.0.0.1/tcp/{ports[number - 1]}"]',
                "network.announce": f'["{proxy.addresses[number - 1]}"]',
            }

        # Small chunks: many of them in a content that is small enough for a run of minutes.
        settings = {"ingest.chunk_size": "256 KiB"}
        with open_testnet(holders + 1, config=settings, config_of=config_of) as mesh:
            work = mesh.root / "work"
            work.mkdir()
            yield Lab(mesh, proxy, work, size, seed)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; a front has to know its node's before that listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
