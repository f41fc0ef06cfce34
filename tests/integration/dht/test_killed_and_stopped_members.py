"""Eight real processes, of which some are killed and one is stopped: what is still found.

How fast is measured by `make bench-dht`, over a testnet of twenty whole nodes.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import trio
from meshnode.dht import Dht, MemoryBackend, open_dht
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import open_libp2p_host

SCRIPT = Path(__file__).with_name("dht_member.py")
MEMBERS = 8


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dht_member", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class Member:
    process: trio.Process
    peer: PeerId
    address: str
    digests: list[bytes]


@asynccontextmanager
async def member(number: int, *join: str) -> AsyncIterator[Member]:
    command = [sys.executable, str(SCRIPT), str(number), *join]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        output = b""
        while not output.endswith(b"announced\n"):
            received = await process.stdout.receive_some()
            assert received, f"member {number} ended"
            output += received
        peer, address = output.decode().split()[:2]
        digests = [digest for digest, _ in _script().chunks_of(number)]
        yield Member(process, PeerId.parse(peer), address, digests)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdout.aclose()


async def holders_missing(dht: Dht, members: list[Member]) -> list[tuple[PeerId, bytes]]:
    """(holder, digest) of each chunk whose holder one search for all of them did not name."""
    found = await dht.find_chunks([digest for m in members for digest in m.digests])
    return [
        (m.peer, digest)
        for m in members
        for digest in m.digests
        if m.peer not in {record.peer for record in found[digest]}
    ]


@pytest.mark.timeout(300)
async def test_every_record_with_a_live_holder_is_found_while_members_are_killed_and_stopped() -> (
    None
):
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member(0))
        members = [first]
        for number in range(1, MEMBERS):
            joined = member(number, str(first.peer), first.address)
            members.append(await stack.enter_async_context(joined))
        identity = Identity.generate()
        host = await stack.enter_async_context(
            open_libp2p_host(identity, listen=["/ip4/127.0.0.1/tcp/0"])
        )
        dht = await stack.enter_async_context(open_dht(host, MemoryBackend(), signer=identity))
        host.add_addresses(first.peer, [first.address])
        assert await dht.bootstrap([first.peer]) == MEMBERS
        assert not await holders_missing(dht, members)

        killed, stopped, alive = members[1:3], members[3], [first, *members[4:]]
        for victim in killed:
            victim.process.kill()
        stopped.process.send_signal(signal.SIGSTOP)
        assert not await holders_missing(dht, alive)
        report = await dht.announce([(bytes([7]) * 32, 1)])
        assert report.weakest == len(alive)
        # Who is down is known by now, and is named last where others hold the chunk as well.
        assert not await holders_missing(dht, alive)
