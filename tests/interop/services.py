"""libp2p's ping and identify, which a node does not serve, for checks that need them served."""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.identity.identify.pb.identify_pb2 import Identify
from meshnode.dht.host import Host, Stream
from meshnode.node.transport.streams import BufferedStream
from multiaddr import Multiaddr

PING = "/ipfs/ping/1.0.0"
IDENTIFY = "/ipfs/id/1.0.0"
PING_SIZE = 32
_ED25519 = b"\x08\x01\x12\x20"
"""What stands before 32 bytes of key in libp2p's protobuf of an Ed25519 public key."""


async def answer_pings(stream: Stream) -> None:
    buffered = BufferedStream(stream)
    while not await buffered.at_end():
        await buffered.write(await buffered.read_exactly(PING_SIZE))


async def answer_identify(host: Host, protocols: Sequence[str], stream: Stream) -> None:
    key = host.peer_id.ed25519_public_key
    assert key is not None
    told = Identify(
        protocol_version="ipfs/0.1.0",
        agent_version="meshnode-interop",
        public_key=_ED25519 + key,
        listen_addrs=[Multiaddr(address).to_bytes() for address in host.addresses()],
        protocols=protocols,
    )
    await BufferedStream(stream).write_frame(told.SerializeToString())


def key_of(identify: Identify) -> bytes:
    """The Ed25519 key that identify names."""
    assert identify.public_key.startswith(_ED25519)
    return identify.public_key.removeprefix(_ED25519)
