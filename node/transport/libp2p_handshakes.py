"""Inbound connections that have not proved who they are: bounded in number and time, counted."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ...errors import PeerError

_SITE_BITS = 64
"""What one subscriber has of IPv6 (RFC 6177), and can change at will."""


class PendingHandshakes:
    """Makes room for newcomers at the cost of the source that has most of them waiting.

    A machine that opens connections and never speaks so displaces its own, and nobody else's.

    Args:
        most: how many may wait at once; beyond it the oldest of the busiest source goes.
        timeout: seconds a handshake may take in all, however busily its bytes trickle in.
        ended: counts those that led to nothing, by reason: `late`, `displaced`, `failed`.
    """

    def __init__(self, most: int, timeout: float, ended: Counter[str]) -> None:
        self._most = most
        self._timeout = timeout
        self._ended = ended
        self._waiting: dict[str, OrderedDict[int, trio.CancelScope]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def one_more(self, host: str) -> Iterator[None]:
        """Bounds a handshake with somebody at the IP address `host`; a PeerError in it is counted.

        Raises:
            PeerError: it took too long, or had to make room.
        """
        if self._waiting and self._count >= self._most:
            self._displace()
        source = source_of(host)
        with trio.move_on_after(self._timeout) as scope:
            self._waiting.setdefault(source, OrderedDict())[id(scope)] = scope
            self._count += 1
            try:
                yield
            except PeerError:
                self._ended["failed"] += 1
                raise
            finally:
                displaced = not self._remove(source, scope)
        if scope.cancelled_caught:
            self._ended["displaced" if displaced else "late"] += 1
            raise PeerError("had no time left for the handshake")

    def _displace(self) -> None:
        busiest = max(self._waiting, key=lambda source: len(self._waiting[source]))
        scope = next(iter(self._waiting[busiest].values()))
        self._remove(busiest, scope)
        scope.cancel()

    def _remove(self, source: str, scope: trio.CancelScope) -> bool:
        """Whether it was still there."""
        waiting = self._waiting.get(source, OrderedDict())
        if waiting.pop(id(scope), None) is None:
            return False
        self._count -= 1
        if not waiting:
            del self._waiting[source]
        return True


def source_of(host: str) -> str:
    """Who is taken for one source: an IPv4 address, or an IPv6 site."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((ip, _SITE_BITS), strict=False))
