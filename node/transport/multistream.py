"""multistream-select 1.0: agreeing on the protocol of a stream.

Specification: https://github.com/multiformats/multistream-select.

Bounded on both sides. The opener sends its header and its proposal together, so that agreeing costs
one round trip.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container

from ...errors import PeerError
from .streams import BufferedStream, encode_varint

_HEADER = "/multistream/1.0.0"
_REFUSED = "na"
_MAX_MESSAGE = 1024
_MAX_PROPOSALS = 16


async def propose(stream: BufferedStream, protocol: str) -> None:
    """Ask the peer to speak `protocol` on a stream we opened.

    Raises:
        PeerError: it does not, or it answers nonsense.
    """
    await stream.write(_message(_HEADER) + _message(protocol))
    if await _read(stream) != _HEADER:
        raise _nonsense(stream)
    answer = await _read(stream)
    if answer == _REFUSED:
        raise PeerError(f"{_name(stream)} does not speak {protocol}.")
    if answer != protocol:
        raise _nonsense(stream)


async def answer(
    stream: BufferedStream,
    supported: Container[str],
    admits: Callable[[str], Awaitable[bool]] | None = None,
) -> str:
    """Agree on a protocol for a stream the peer opened; returns which.

    Args:
        admits: asked whether this peer may have a supported protocol; if not, it is told the same
            as if we had never heard of it.

    Raises:
        PeerError: nonsense, or nothing acceptable after several proposals.
    """
    await stream.write(_message(_HEADER))
    if await _read(stream) != _HEADER:
        raise _nonsense(stream)
    for _ in range(_MAX_PROPOSALS):
        proposal = await _read(stream)
        if proposal in supported and (admits is None or await admits(proposal)):
            await stream.write(_message(proposal))
            return proposal
        await stream.write(_message(_REFUSED))
    raise PeerError(f"{_name(stream)} proposed no protocol that is spoken here.")


def _message(text: str) -> bytes:
    data = text.encode("ascii") + b"\n"
    return encode_varint(len(data)) + data


async def _read(stream: BufferedStream) -> str:
    data = await stream.read_frame(_MAX_MESSAGE)
    # Peers may send any bytes here; what is not ASCII is no protocol of ours.
    text = data[:-1].decode("ascii", errors="replace")
    if not data.endswith(b"\n") or not text:
        raise _nonsense(stream)
    return text


def _nonsense(stream: BufferedStream) -> PeerError:
    return PeerError(f"{_name(stream)} does not speak multistream-select.")


def _name(stream: BufferedStream) -> str:
    # Whoever dials us has no name until the handshake is over.
    return f"Peer {stream.peer.short}" if stream.peer else "The peer"
