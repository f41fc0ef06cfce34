"""A member whose process is really stopped (SIGSTOP): nothing is closed, nothing answered."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio
from blake3 import blake3
from meshnode.dht import MemoryBackend, open_dht
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host

CHUNKS = [(blake3(b"chunk %d" % number).digest(), 1000) for number in range(50)]
MANIFEST = b"a manifest " * 100
LISTEN = ["/ip4/127.0.0.1/tcp/0"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Member:
    process: trio.Process
    peer: PeerId
    address: str


@asynccontextmanager
async def member(*join: str) -> AsyncIterator[Member]:
    script = str(Path(__file__).with_name("dht_process.py"))
    command = [sys.executable, script, *join]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with trio.fail_after(60):
            output = b""
            while not output.endswith(b"announced\n"):
                received = await process.stdout.receive_some()
                assert received, "the member's process ended"
                output += received
        peer, address = output.decode().split()[:2]
        yield Member(process, PeerId.parse(peer), address)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdout.aclose()


async def test_a_stopped_member_stalls_no_operation_by_more_than_two_seconds() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member())
        others = [
            await stack.enter_async_context(member(str(first.peer), first.address))
            for _ in range(3)
        ]
        host = await stack.enter_async_context(open_libp2p_host(Identity.generate(), listen=LISTEN))
        dht = await stack.enter_async_context(open_dht(host, MemoryBackend()))
        host.add_addresses(first.peer, [first.address])
        assert await dht.bootstrap([first.peer]) == 4

        digest = blake3(MANIFEST).digest()
        digests = [digest for digest, _ in CHUNKS]

        async def timed(call: Callable[[], Awaitable[_T]]) -> tuple[float, _T]:
            began = trio.current_time()
            result = await call()
            return trio.current_time() - began, result

        usual, found = await timed(lambda: dht.find_chunks(digests))
        assert all({r.peer for r in found[d]} == {o.peer for o in others} for d in digests)
        usual = max(usual, (await timed(lambda: dht.find_closest(b"key")))[0])

        stopped = others[0]
        stopped.process.send_signal(signal.SIGSTOP)
        # What a busy machine adds to the two seconds is in the usual time as well.
        allowed = 2.0 + 10 * usual
        fresh = blake3(b"fresh").digest()

        took, result = await timed(lambda: dht.find_closest(b"another key"))
        assert took <= allowed
        assert {first.peer, others[1].peer, others[2].peer} <= set(result.closest)
        took, found = await timed(lambda: dht.find_chunks(digests))
        assert took <= allowed
        assert all({o.peer for o in others[1:]} <= {r.peer for r in found[d]} for d in digests)
        took, value = await timed(lambda: dht.get_manifest(digest))
        assert took <= allowed
        assert value == MANIFEST
        took, report = await timed(lambda: dht.announce([(fresh, 10)]))
        assert took <= allowed
        assert report.weakest == 3
        assert stopped.peer in {failure.peer for failure in report.failed}
