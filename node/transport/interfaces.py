"""Which addresses a listener on the wildcard address can be reached at."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

import ifaddr


def concrete_addresses(kind: str, host: str, port: int) -> list[str]:
    """Multiaddrs for a listener bound to `host` (`kind` is ip4 or ip6).

    For a wildcard host those of this machine's interfaces: loopback only when there is no other,
    IPv6 link-local never (it means nothing without the name of an interface).
    """
    bound = ipaddress.ip_address(host)
    if not bound.is_unspecified:
        return [f"/{kind}/{bound}/tcp/{port}"]
    found = sorted(
        set(_interface_addresses(bound.version)), key=lambda ip: (ip.is_loopback, ip.packed)
    )
    usable = [ip for ip in found if not ip.is_loopback] or found
    return [f"/{kind}/{ip}/tcp/{port}" for ip in usable]


def _interface_addresses(
    version: int,
) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    adapters: Iterable[ifaddr.Adapter] = ifaddr.get_adapters()
    for adapter in adapters:
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            ip = ipaddress.ip_address(text.partition("%")[0])
            if ip.version == version and not ip.is_link_local and not ip.is_unspecified:
                yield ip
