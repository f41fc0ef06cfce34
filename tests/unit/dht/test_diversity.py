from __future__ import annotations

import pytest
from meshnode.dht.diversity import network_group


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("/ip4/9.9.9.9/tcp/1", "9.9.9.0/24"),
        ("/ip4/9.9.9.200/udp/7", "9.9.9.0/24"),
        ("/ip6/2a01:4f8:1:2::7/tcp/1", "2a01:4f8:1::/48"),
        ("/ip6/::ffff:9.9.9.9/tcp/1", "9.9.9.0/24"),
        ("/ip4/127.0.0.1/tcp/1", None),
        ("/ip4/10.1.2.3/tcp/1", None),
        ("/ip4/192.168.1.1/tcp/1", None),
        ("/ip4/100.64.0.1/tcp/1", None),
        ("/ip6/fe80::1/tcp/1", None),
        ("/ip6/fd00::1/tcp/1", None),
        ("/dns4/example.org/tcp/1", None),
        ("/ip4/9.9.9/tcp/1", None),
        ("ip4", None),
        ("", None),
    ],
)
def test_a_public_address_belongs_to_its_network_and_others_to_none(
    address: str, group: str | None
) -> None:
    assert network_group([address]) == group


def test_the_first_public_address_decides() -> None:
    assert network_group(["/ip4/10.0.0.1/tcp/1", "/ip4/9.9.9.9/tcp/1"]) == "9.9.9.0/24"
    assert network_group([]) is None
