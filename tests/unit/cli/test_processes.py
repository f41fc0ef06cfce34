"""What only a process of its own can show: imports, signals, pipes, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from meshnode.node.content import Link
from meshnode.node.transfer import Progress, Started

from tests.unit.api.fake_node import HOSTILE_NAME, LINK, FakeNode, file_entry, folder_manifest

MESHNODE = [sys.executable, "-m", "meshnode.cli"]
HEAVY = ("trio", "libp2p", "httpx", "starlette", "hypercorn", "cryptography", "rich", "tomlkit")


def wait_for(event: trio.Event, process: subprocess.Popen[bytes]) -> None:
    """Until the node, in its own thread, has set `event`."""
    while not event.is_set():
        assert process.poll() is None, process.communicate()
        os.sched_yield()


def on_terminal(arguments: Sequence[str], *, stdout: int | None = None) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code and what the terminal saw."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MESHNODE, *arguments],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = bytearray()
    while True:
        select.select([ours], [], [], 60)
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    return process.wait(60), seen.decode("utf-8", "replace")


def test_the_version_costs_no_heavy_import() -> None:
    script = (
        "import gc, sys\n"
        "from meshnode.cli.main import main\n"
        "code = main(['--version'])\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])\n"
        "assert gc.get_freeze_count(), 'the collector looks through all of click'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, rest = done.stdout.splitlines()
    assert re.fullmatch(r"meshnode \d+\.\d+\.\d+", version)
    assert rest == "0 []"


CLIENT_COMMANDS = [
    ["--json", "get", str(LINK), "-o", "/x"],
    ["put", "/a"],
    ["cat", str(LINK)],
    ["ls"],
    ["ls", str(LINK)],
    ["stat", str(LINK)],
    ["rm", str(LINK)],
    ["why"],
    ["status"],
    ["peers"],
]
RUN_ALL = """
import json, sys
ours = {"meshnode", *(name for name in sys.modules if "." not in name)}
from meshnode.cli.main import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
    loaded = {name.partition(".")[0] for name in sys.modules} - ours - sys.stdlib_module_names
    slow = {"asyncio", "email", "ssl", "tomllib", "meshnode.config.model"} & set(sys.modules)
    assert loaded == {"click", "h11"} and not slow, (command, loaded, slow)
"""


def test_a_command_to_a_running_node_loads_click_and_h11_and_nothing_else(
    settled: FakeNode,
) -> None:
    settled.found = folder_manifest(file_entry(b"x"))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(CLIENT_COMMANDS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_command_loads_no_other() -> None:
    script = (
        "import sys\n"
        "from meshnode.cli.main import main\n"
        "main(['get', '--help'])\n"
        "print([name for name in sys.modules if name.endswith('_commands')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    expected = ["meshnode.cli.lazy_commands", "meshnode.cli.transfer_commands"]
    assert done.stdout.splitlines()[-1] == repr(expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["put", "get"])
def test_a_signal_cancels_the_work_at_the_node(
    served: FakeNode, verb: str, number: signal.Signals
) -> None:
    served.hang = True
    arguments = ["put", "/a"] if verb == "put" else ["get", str(LINK), "-o", "/x"]
    process = subprocess.Popen([*MESHNODE, *arguments], stdout=-1, stderr=-1)
    wait_for(served.entered, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert (process.returncode, out, err) == (130, b"", b"interrupted\n")
        # The command ended after the node had put everything away, not before.
        assert served.cleaned_up
    else:
        wait = subprocess.Popen(["sleep", "20"])
        wait_for(served.cancelled, wait)
        wait.kill()
        wait.wait()


EMBEDDED = """
import sys, contextlib, trio, types
from meshnode.cli.main import main
from tests.unit.api.fake_node import FakeNode

@contextlib.asynccontextmanager
async def open_fake(config, *, serve_peers):
    node = FakeNode(config, hang=True)
    async with trio.open_nursery() as nursery:
        async def tell():
            await node.entered.wait()
            while sys.argv[1] == "-" and not node.received:
                await trio.sleep(0.01)
            print("working", file=sys.stderr, flush=True)
        nursery.start_soon(tell)
        try:
            yield node
        finally:
            print("closed", node.cleaned_up, file=sys.stderr, flush=True)
            nursery.cancel_scope.cancel()

# In place of the module: loading the network library takes seconds.
sys.modules["meshnode.node.node"] = types.SimpleNamespace(open_node=open_fake)
sys.exit(main(["-q", "put", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_an_embedded_node_cleanly(node: FakeNode, number: signal.Signals) -> None:
    node.config.paths.mesh_file.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", EMBEDDED, "/a"], stdout=-1, stderr=-1, cwd=Path(__file__).parents[3]
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"working\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert err == b"closed True\ninterrupted\n"


def test_a_signal_ends_a_put_that_waits_for_its_standard_input(node: FakeNode) -> None:
    node.config.paths.mesh_file.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", EMBEDDED, "-"],
        stdin=-1,
        stdout=-1,
        stderr=-1,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"x")
    process.stdin.flush()
    assert process.stderr.readline() == b"working\n"
    process.send_signal(signal.SIGINT)
    # Standard input stays open: somebody is still going to write to it.
    assert process.wait(30) == 130
    assert process.stderr.read() == b"closed False\ninterrupted\n"


def test_a_reader_that_has_enough_ends_cat_quietly(served: FakeNode) -> None:
    served.pieces = [bytes(1 << 16)] * 500
    process = subprocess.Popen([*MESHNODE, "cat", str(LINK)], stdout=-1, stderr=-1)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


def test_a_full_disk_behind_standard_output_is_told(served: FakeNode) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*MESHNODE, "cat", str(LINK)], stdout=full, stderr=-1, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Standard output cannot be written: No space left")


def test_a_terminal_sees_a_bar_and_a_pipe_does_not(served: FakeNode) -> None:
    served.events = [Started("big.iso", 2_000_000, 1), Progress(1_000_000, 1)]
    code, seen = on_terminal(["put", "/big.iso"])
    assert code == 0
    assert "put big.iso" in seen
    assert "1.0/2.0 MB" in seen
    assert str(LINK) in seen
    done = subprocess.run([*MESHNODE, "put", "/big.iso"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{LINK}\n", "")


def test_details_go_to_the_terminal_while_links_go_to_the_pipe(served: FakeNode) -> None:
    reader, writer = os.pipe()
    code, seen = on_terminal(["put", "/a"], stdout=writer)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == f"{LINK}\n"
    assert code == 0
    assert "copies: 3 of 3" in seen
    assert "survives the loss of 2 nodes" in seen
    assert "attic, cellar" in seen
    assert str(LINK) not in seen


def test_a_terminal_sees_what_all_sources_came_to(served: FakeNode) -> None:
    code, seen = on_terminal(["put", "/a", "/b", "/c"])
    assert code == 0
    assert "3 sources: 3 put; " in seen
    assert "0 retries" in seen


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_a_terminal_sees_no_bar_when_asked_for_none(served: FakeNode, option: str) -> None:
    served.events = [Started("big.iso", 2_000_000, 1), Progress(1_000_000, 1)]
    code, seen = on_terminal([option, "put", "/big.iso"])
    assert code == 0
    assert "put big.iso" not in seen
    assert "MB" not in seen


def test_a_hostile_name_does_not_reach_the_terminal(served: FakeNode) -> None:
    served.found = folder_manifest(file_entry(HOSTILE_NAME), file_entry(b"[bold]x"))
    code, seen = on_terminal(["ls", str(LINK)])
    assert code == 0
    assert "evil\\x1b[31m\\nname" in seen
    assert "\x1b[31m" not in seen
    assert "[bold]x" in seen


def test_a_table_does_not_break_a_link(served: FakeNode) -> None:
    link = Link(b"\x77" * 32, b"\x88" * 32)
    served.catalogue_facts = [{"link": str(link), "name": "n" * 100, "size": 1, "copies": 1}]
    _, seen = on_terminal(["ls"])
    assert str(link) in seen
