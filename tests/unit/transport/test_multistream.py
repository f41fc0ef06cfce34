"""Agreeing on a protocol, with the specification's bytes and with nonsense."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.host import Buffer
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.multistream import answer, propose
from meshnode.node.transport.streams import BufferedStream

HEADER = b"\x13/multistream/1.0.0\n"
ECHO = b"\x0d/test/echo/1\n"
NA = b"\x03na\n"


class Scripted:
    """A stream on which the peer says `incoming`."""

    def __init__(self, incoming: bytes) -> None:
        self.incoming = incoming
        self.written = b""
        self.peer = PeerId.from_ed25519(bytes(32))
        self.protocol = ""

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        data, self.incoming = self.incoming[:max_bytes], self.incoming[max_bytes:]
        return data

    async def write(self, data: Buffer) -> None:
        self.written += bytes(data)

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


async def test_the_opener_sends_header_and_proposal_together() -> None:
    inner = Scripted(HEADER + ECHO + b"first bytes")
    stream = BufferedStream(inner)
    await propose(stream, "/test/echo/1")
    assert inner.written == HEADER + ECHO
    assert stream.take_rest() == b"first bytes"


async def test_a_peer_that_has_not_proved_who_it_is_is_not_named() -> None:
    inner = Scripted(b"\x03no\n")
    inner.peer = PeerId(b"")
    with pytest.raises(PeerError, match=r"^The peer does not speak multistream-select\.$"):
        await answer(BufferedStream(inner), ("/test/echo/1",))


async def test_the_server_refuses_until_a_proposal_fits() -> None:
    inner = Scripted(HEADER + b"\x0a/test/no/\n" + ECHO + b"first bytes")
    stream = BufferedStream(inner)
    assert await answer(stream, {"/test/echo/1": None}) == "/test/echo/1"
    assert inner.written == HEADER + NA + ECHO
    assert stream.take_rest() == b"first bytes"


async def test_a_refusal_names_the_protocol() -> None:
    with pytest.raises(PeerError, match="does not speak /test/echo/1"):
        await propose(BufferedStream(Scripted(HEADER + NA)), "/test/echo/1")


async def test_proposals_are_not_listened_to_for_ever() -> None:
    inner = Scripted(HEADER + b"\x02x\n" * 1000)
    with pytest.raises(PeerError, match="no protocol"):
        await answer(BufferedStream(inner), {"/test/echo/1": None})


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", HEADER, HEADER + ECHO[:5]]))
def test_nonsense_is_a_peer_error(noise: bytes, before: bytes) -> None:
    async def main() -> None:
        for attempt in (propose, answer):
            stream = BufferedStream(Scripted(before + noise))
            with pytest.raises(PeerError):
                await attempt(stream, "/test/nobody/says/this/1")

    trio.run(main)
