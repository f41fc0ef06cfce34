"""Which peers might be one machine, or one owner's machines: those that share an address prefix.

Keys cost nothing, addresses do: who wants to surround a node or a key needs many peers, and mostly
has them in few networks. Prefixes as in Kubo's and libtorrent's defences: /24 of IPv4, /48 of IPv6,
which is what a site is given.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache

_V4_PREFIX = 24
_V6_PREFIX = 48

GroupOf = Callable[[Iterable[str]], str | None]


def network_group(addresses: Iterable[str]) -> str | None:
    """The network of the first address that is public and numeric; None when there is none.

    Peers at loopback and private addresses are in no group: a laboratory, an office or one machine
    is a mesh too.
    """
    for address in addresses:
        group = _group_of(address)
        if group is not None:
            return group
    return None


@lru_cache(maxsize=16384)
def _group_of(address: str) -> str | None:
    parts = address.split("/", 3)
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global:
        return None
    bits = _V4_PREFIX if ip.version == 4 else _V6_PREFIX
    return str(ipaddress.ip_network((ip, bits), strict=False))
