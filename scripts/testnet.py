#!/usr/bin/env python3
"""A local testnet: N real node processes on this machine, each with its own home.

    python scripts/testnet.py --nodes 5            start, print the nodes, run until Ctrl-C
    python scripts/testnet.py --nodes 5 --demo     put and get a real file and folder, then clean up
    python scripts/testnet.py --nodes 3 --exec 'meshnode put README.md'   run a command, clean up

Nodes are started with the same commands a person would type (`init`, `invite`, `join`, `start`).
A command given to --exec runs with MESHNODE_HOME set to the first node's home and
MESHNODE_TESTNET_HOMES to all homes, separated by the path separator. Everything is torn down on
the way out, also after an error; --keep leaves the homes (not the processes) behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
from meshnode.config import load_config, set_value

BIN = Path(sys.executable).parent
MESHNODE = [sys.executable, "-m", "meshnode.cli"]
START_TIMEOUT_SECS = 90.0
STOP_TIMEOUT_SECS = 8.0
POLL_SECS = 0.05


class TestnetError(RuntimeError):
    """A node did not do what the testnet needs; the message ends with its last log lines."""

    __test__ = False  # not a test, whatever its name


@dataclass
class TestnetNode:
    """One node process and its home."""

    __test__ = False

    index: int
    home: Path
    config: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    command: Sequence[str] = (*MESHNODE, "start")
    """What `start` runs."""
    peer_id: str = ""
    addresses: list[str] = field(default_factory=list)
    _log: IO[bytes] | None = None

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def log_path(self) -> Path:
        return self.home / "testnet.log"

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.poll() is None else None

    def environment(self) -> dict[str, str]:
        """The environment of this node's commands: nothing of the caller's own meshnode set-up."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
        return {**clean, "MESHNODE_HOME": str(self.home)}

    def run(
        self, *arguments: str | bytes | Path, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one `meshnode` command against this node's home; output is captured as text."""
        return subprocess.run(
            [*MESHNODE, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            **options,
        )

    def must(self, *arguments: str | bytes | Path) -> str:
        """Like `run`, but a command that fails ends the testnet with what it printed."""
        done = self.run(*arguments)
        if done.returncode != 0:
            words = " ".join(os.fsdecode(a) for a in arguments)
            raise TestnetError(
                f"{self.name}: `meshnode {words}` exited with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def configure(self) -> None:
        """Write this node's settings into its config.toml."""
        for key, value in self.config.items():
            set_value(self.home / "config.toml", key, value)

    def start(self) -> None:
        """Start the process; `wait_ready` says when it serves."""
        self._log = self.log_path.open("ab")
        self.process = subprocess.Popen(
            self.command,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def status(self) -> dict[str, Any] | None:
        """The node's own status, or None while its API does not answer."""
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)
        try:
            with httpx.Client(transport=transport, base_url="http://meshnode", timeout=10) as api:
                answer: dict[str, Any] = api.get("/v1/status").raise_for_status().json()
                return answer
        except (httpx.TransportError, httpx.HTTPStatusError):
            return None

    @property
    def socket(self) -> Path:
        return load_config(self.home, env={}).paths.socket

    def wait_ready(self, connected_peers: int = 0) -> None:
        """Wait until the node serves and sees at least `connected_peers` others."""
        deadline = time.monotonic() + START_TIMEOUT_SECS
        seen = None
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                code = self.process.returncode
                raise TestnetError(f"{self.name} ended with {code}.\n{self.last_log_lines()}")
            status = self.status()
            if status is not None:
                self.peer_id, self.addresses = status["peer_id"], status["addresses"]
                seen = status["connected_peers"]
                if status["ready"] and seen >= connected_peers:
                    return
            time.sleep(POLL_SECS)
        raise TestnetError(
            f"{self.name} was not ready after {START_TIMEOUT_SECS:.0f} s "
            f"(connected peers: {seen}, wanted: {connected_peers}).\n{self.last_log_lines()}"
        )

    def last_log_lines(self, count: int = 15) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self.signal(signal.SIGKILL)
        self.reap(STOP_TIMEOUT_SECS)

    def reap(self, timeout: float) -> bool:
        """Wait for the process to end; True when it has."""
        if self.process is not None:
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
        if self._log is not None:
            self._log.close()
            self._log = None
        return True


@dataclass
class Testnet:
    """All nodes, in one mesh, first one is the one that made the mesh."""

    __test__ = False

    root: Path
    nodes: list[TestnetNode]

    def __getitem__(self, number: int) -> TestnetNode:
        """Node `number`, counted from 1 as people do."""
        return self.nodes[number - 1]

    def environment(self) -> dict[str, str]:
        homes = os.pathsep.join(str(node.home) for node in self.nodes)
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**self.nodes[0].environment(), "PATH": path, "MESHNODE_TESTNET_HOMES": homes}

    def stop(self) -> None:
        """Stop every process: politely, all at once, and then for certain."""
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            node.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_SECS
        for node in self.nodes:
            if not node.reap(max(0.1, deadline - time.monotonic())):
                print(f"{node.name} ignored SIGTERM; killing it", file=sys.stderr)
                node.kill()


@contextlib.contextmanager
def open_testnet(
    count: int,
    *,
    config: dict[str, str] | None = None,
    config_of: Callable[[int], dict[str, str]] = lambda _: {},
    keep: bool = False,
    root: Path | None = None,
) -> Iterator[Testnet]:
    """Start `count` nodes in one fresh mesh and wait until each sees all others.

    Args:
        config: extra configuration keys for every node ("storage.replication" -> "2").
        config_of: the same for one node, by its number from 1; they win.
        keep: leave the homes behind.
        root: where the homes go; default a new temporary folder (kept short: socket paths).
    """
    base = Path(tempfile.mkdtemp(prefix="meshnode-", dir=root))
    settings = {
        "network.listen": '["/ip4/127.0.0.1/tcp/0"]',
        "network.mdns": "false",  # this mesh must not meet another testnet of this machine
        **(config or {}),
    }
    nodes = [
        TestnetNode(
            number,
            base / f"n{number}",
            {**settings, "node.name": f"node{number}", **config_of(number)},
        )
        for number in range(1, count + 1)
    ]
    testnet = Testnet(base, nodes)
    try:
        _create(nodes)
        yield testnet
    finally:
        testnet.stop()
        if keep:
            print(f"homes kept in {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)


def _create(nodes: Sequence[TestnetNode]) -> None:
    first = nodes[0]
    first.must("init", "--name", "testnet")
    first.configure()
    first.start()
    first.wait_ready()
    token = json.loads(first.must("--json", "invite"))["token"]

    def join_and_start(node: TestnetNode) -> None:
        node.must("join", token)
        node.configure()
        node.start()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # list() so that the first failure is raised here.
        list(pool.map(join_and_start, nodes[1:]))
        list(pool.map(lambda node: node.wait_ready(len(nodes) - 1), nodes))


def print_table(testnet: Testnet) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "pid", "port", "peer id", "home")
    for node in testnet.nodes:
        port = node.addresses[0].split("/")[4] if node.addresses else "-"
        peer = f"...{node.peer_id[-8:]}"
        table.add_row(node.name, str(node.pid or "-"), port, peer, str(node.home))
    Console().print(table)


def wait_for_interrupt(testnet: Testnet) -> None:
    """Until Ctrl-C or SIGTERM; a node that ends by itself meanwhile is reported."""
    print("Running. Ctrl-C stops everything. Talk to a node with, for example:")
    print(f"  MESHNODE_HOME={testnet[1].home} {BIN / 'meshnode'} status")
    reported: set[int] = set()
    while len(reported) < len(testnet.nodes):
        for node in testnet.nodes:
            if node.index not in reported and node.process and node.process.poll() is not None:
                print(f"{node.name} ended with {node.process.returncode}", file=sys.stderr)
                reported.add(node.index)
        with contextlib.suppress(InterruptedError):
            signal.sigtimedwait({signal.SIGCHLD}, 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=5, metavar="N", help="how many (default 5)")
    parser.add_argument("--demo", action="store_true", help="put and get real data, then clean up")
    parser.add_argument("--keep", action="store_true", help="keep the nodes' homes afterwards")
    parser.add_argument("--exec", metavar="CMD", help="run a shell command against the mesh")
    options = parser.parse_args(arguments)
    if options.nodes < 1 or (options.demo and options.nodes < 3):
        parser.error("--nodes must be at least 1, and at least 3 with --demo")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    started = time.monotonic()
    try:
        with open_testnet(options.nodes, keep=options.keep) as testnet:
            print(f"{options.nodes} nodes up in {time.monotonic() - started:.1f} s")
            print_table(testnet)
            if options.demo:
                from demo import run_demo

                code: int = run_demo(testnet)
                return code
            if options.exec is not None:
                done = subprocess.run(options.exec, shell=True, env=testnet.environment())
                return done.returncode
            wait_for_interrupt(testnet)
            return 0
    except TestnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
