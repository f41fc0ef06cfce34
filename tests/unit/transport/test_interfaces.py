"""What a listener tells others to dial."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from meshnode.node.transport import interfaces
from meshnode.node.transport.interfaces import concrete_addresses


def with_interfaces(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    ips = [SimpleNamespace(ip=(t, 0, 0) if ":" in t else t) for t in texts]
    adapters = [SimpleNamespace(ips=ips)]
    monkeypatch.setattr(interfaces.ifaddr, "get_adapters", lambda: adapters)


def test_a_concrete_address_is_told_as_it_is() -> None:
    assert concrete_addresses("ip4", "127.0.0.1", 4710) == ["/ip4/127.0.0.1/tcp/4710"]


def test_the_wildcard_names_the_interfaces_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch, "127.0.0.1", "192.0.2.7", "fe80::1", "2001:db8::7", "::1")
    assert concrete_addresses("ip4", "0.0.0.0", 1) == ["/ip4/192.0.2.7/tcp/1"]
    assert concrete_addresses("ip6", "::", 1) == ["/ip6/2001:db8::7/tcp/1"]


def test_loopback_is_told_when_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch, "127.0.0.1")
    assert concrete_addresses("ip4", "0.0.0.0", 1) == ["/ip4/127.0.0.1/tcp/1"]
    assert concrete_addresses("ip6", "::", 1) == []
