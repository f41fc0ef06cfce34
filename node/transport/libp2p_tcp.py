"""From a multiaddr to a TCP connection."""

from __future__ import annotations

import socket
from functools import partial
from socket import getaddrinfo

import trio

from ...config.addresses import parse_address
from ...errors import PeerError
from .libp2p_listen import os_reason

_MAX_RESOLVED = 4
_STAGGER = 0.1
_FAMILIES = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}


async def open_tcp(text: str, resolvers: trio.CapacityLimiter) -> trio.SocketStream:
    """Connect to a multiaddr that `parse_address` accepts.

    Args:
        resolvers: how many threads may wait for the answer of a name server.

    Raises:
        PeerError: no such name, refused, unreachable; in the words of the operating system.
    """
    address = parse_address(text)
    try:
        if address.is_numeric:
            return await trio.open_tcp_stream(address.host, address.port)
        family = _FAMILIES.get(address.kind, socket.AF_UNSPEC)
        hosts = await _resolve(address.host, family, resolvers)
        return await _first_to_answer(hosts, address.port)
    except OSError as error:
        raise PeerError(os_reason(error)) from error


async def _resolve(name: str, family: int, resolvers: trio.CapacityLimiter) -> list[str]:
    found = await trio.to_thread.run_sync(
        partial(getaddrinfo, name, None, family, socket.SOCK_STREAM),
        limiter=resolvers,
        abandon_on_cancel=True,
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MAX_RESOLVED]


async def _first_to_answer(hosts: list[str], port: int) -> trio.SocketStream:
    """As RFC 8305: each gets a short head start over the next."""
    streams: list[trio.SocketStream] = []
    errors: list[OSError] = []

    async def attempt(host: str, failed: trio.Event, all_attempts: trio.CancelScope) -> None:
        try:
            streams.append(await trio.open_tcp_stream(host, port))
        except OSError as error:
            errors.append(error)
            failed.set()
        else:
            all_attempts.cancel()

    async with trio.open_nursery() as nursery:
        for host in hosts:
            failed = trio.Event()
            nursery.start_soon(attempt, host, failed, nursery.cancel_scope)
            with trio.move_on_after(_STAGGER):
                await failed.wait()
    if not streams:
        raise errors[0] if errors else OSError("the name has no addresses")
    for late in streams[1:]:
        late.socket.close()
    return streams[0]
