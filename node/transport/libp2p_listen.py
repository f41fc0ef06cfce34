"""The addresses a host listens on and announces: checked, bound, and refused in words that help."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import trio

from ...config.addresses import ADDRESS_EXAMPLE, Address, parse_address
from ...errors import RefusedError, UsageError


def check_announced(text: str) -> None:
    """UsageError unless others could dial `text`."""
    address = _parse(text, "announce")
    if address.peer is not None or not address.is_dialable:
        raise UsageError(
            f"network.announce: others cannot dial {text}.",
            hint="Name a concrete host and port, without /p2p.",
        )


async def bind_all(addresses: Sequence[str]) -> list[trio.SocketListener]:
    """Listeners on all of `addresses`, or on none.

    Raises:
        UsageError: not an address to listen on.
        RefusedError: the port is taken or the address is not ours.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for address in addresses:
            listeners += await _bind(address)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _bind(text: str) -> Sequence[trio.SocketListener]:
    address = _parse(text, "listen")
    if address.peer is not None or not address.is_numeric:
        raise UsageError(
            f"network.listen: cannot listen on {text}.",
            hint="Name an IP address and a port, such as /ip4/0.0.0.0/tcp/4710.",
        )
    port = address.port
    try:
        return await trio.open_tcp_listeners(port, host=address.host)
    except OSError as error:
        raise RefusedError(
            f"Cannot listen on {text}: {os_reason(error)}.",
            hint=f"Stop what uses port {port}, or choose another port (config key network.listen)."
            if _is(error, errno.EADDRINUSE)
            else "Choose an address of this machine (config key network.listen).",
        ) from error


def _parse(text: str, key: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(
            f"network.{key}: {text[:80]!r} cannot be used: {error}.",
            hint=f"An address looks like {ADDRESS_EXAMPLE}.",
        ) from error


def socket_address(name: tuple[str, int]) -> tuple[str, str, int]:
    """What the kernel says of one end of a connection, as (`ip4` or `ip6`, host, port)."""
    host, port = name
    return ("ip6" if ":" in host else "ip4", host.partition("%")[0], port)


def _is(error: OSError, number: int) -> bool:
    return error.errno == number or (
        isinstance(error.__cause__, OSError) and error.__cause__.errno == number
    )


def os_reason(error: OSError) -> str:
    """What the operating system said, in its own words, without the address repeated."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    best = cause if isinstance(cause, OSError) else error
    return (best.strerror or str(best)).lower()
