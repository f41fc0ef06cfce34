"""The multiaddrs meshnode can listen on and dial: TCP over IPv4, IPv6 or a DNS name.

Multiaddr specification, https://github.com/multiformats/multiaddr. Only the part of it that this
software speaks is accepted, so that a mistake is found when it is written down, not when it is
dialled; and without the network library, which the command line must not load.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

MAX_ADDRESS_CHARS = 256
ADDRESS_EXAMPLE = "/ip4/192.0.2.7/tcp/4710"
_SHAPE = f"not of the form {ADDRESS_EXAMPLE}, optionally with /p2p/PEER-ID"
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A checked multiaddr, taken apart."""

    kind: str
    """`ip4`, `ip6`, `dns`, `dns4` or `dns6`."""
    host: str
    port: int
    peer: str | None
    """The base58 peer id after `/p2p/`, if any."""

    @property
    def is_numeric(self) -> bool:
        return self.kind in ("ip4", "ip6")

    @property
    def is_dialable(self) -> bool:
        """False for port 0 and for 0.0.0.0 and ::, which say "any" and lead nowhere."""
        unspecified = self.is_numeric and ipaddress.ip_address(self.host).is_unspecified
        return self.port != 0 and not unspecified


def parse_address(text: str) -> Address:
    """Check and take apart one multiaddr.

    Raises:
        ValueError: not an address meshnode can use; the text says why.
    """
    if len(text) > MAX_ADDRESS_CHARS or not text.startswith("/"):
        raise ValueError(_SHAPE)
    parts = text[1:].split("/")
    if len(parts) not in (4, 6):
        raise ValueError(_SHAPE)
    kind, host, transport, port = parts[:4]
    _check_host(kind, host)
    if transport != "tcp":
        raise ValueError(f"{transport[:20]!r} is not tcp, the only transport")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{port[:20]!r} is not a port from 0 to 65535")
    peer = None
    if len(parts) == 6:
        if parts[4] != "p2p":
            raise ValueError(_SHAPE)
        peer = parts[5]
        _check_peer(peer)
    return Address(kind, host, int(port), peer)


def _check_host(kind: str, host: str) -> None:
    if kind == "ip4":
        ipaddress.IPv4Address(host)
    elif kind == "ip6":
        if "%" in host:
            raise ValueError("an IPv6 zone cannot be part of an address")
        ipaddress.IPv6Address(host)
    elif kind in ("dns", "dns4", "dns6"):
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
            raise ValueError(f"{host[:40]!r} is not a host name")
    else:
        raise ValueError(f"{kind[:20]!r} is not one of ip4, ip6, dns, dns4, dns6")


def _check_peer(peer: str) -> None:
    import base58  # costs start-up time that a command without such an address need not pay

    try:
        decoded = base58.b58decode(peer) if 0 < len(peer) <= 128 else b""
    except ValueError:
        decoded = b""
    # The multihash of a key: its identity (0x00) or its SHA-256 (0x12), then the length.
    if not (2 < len(decoded) <= 64 and decoded[0] in (0, 0x12) and decoded[1] == len(decoded) - 2):
        raise ValueError(f"{peer[:60]!r} is not a peer id")
