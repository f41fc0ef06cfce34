"""Finding members on the local network: DNS-SD over multicast DNS (RFC 6763, RFC 6762).

What is announced can be read by everybody on the network: peer id, addresses, and a tag by which
members recognise each other's mesh. The tag is derived from the membership key, so it tells
strangers that two machines belong together, and neither the mesh's id nor its name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
import trio
import zeroconf
from blake3 import blake3
from zeroconf import InterfaceChoice, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from ...config.addresses import MAX_ADDRESS_CHARS, parse_address
from ...dht.peer_id import PeerId
from ...errors import FormatError
from .owned_nursery import open_owned_nursery

__all__ = ["open_mdns"]

_log = structlog.get_logger(__name__)

SERVICE_TYPE = "_meshnode._tcp.local."
_TAG_CONTEXT = "meshnode 2026-11-22 mdns tag v1"
_MAX_ADDRESSES = 8
_RESOLVE_TIMEOUT_MS = 2000

Found = Callable[[PeerId, list[str]], None]
"""Told of a member and its multiaddrs, in trio's thread; may be told of the same one again."""


class _Mesh(Protocol):
    @property
    def membership_key(self) -> bytes: ...


class _Host(Protocol):
    @property
    def peer_id(self) -> PeerId: ...
    def addresses(self) -> list[str]: ...


@asynccontextmanager
async def open_mdns(
    host: _Host, mesh: _Mesh, found: Found, *, interfaces: Sequence[str] | None = None
) -> AsyncIterator[None]:
    """Announce `host` and report other members of `mesh`, until the end of the block.

    A machine on which multicast does not work gets a warning in the log and no discovery.

    Args:
        interfaces: IP addresses of the interfaces to use; all by default.
    """
    tag = mesh_tag(mesh)
    token = trio.lowlevel.current_trio_token()

    def tell(peer: PeerId, addresses: list[str]) -> None:
        if peer != host.peer_id:
            _log.debug("mdns_found", peer=str(peer), addresses=addresses)
            token.run_sync_soon(found, peer, addresses)

    # The library runs an event loop of its own in a thread; each of its calls may block.
    try:
        connection = await trio.to_thread.run_sync(
            lambda: Zeroconf(InterfaceChoice.All if interfaces is None else list(interfaces))
        )
    except OSError as error:
        _log.warning("mdns_unavailable", error=str(error))
        yield
        return
    responder = _Responder(connection)
    try:
        async with open_owned_nursery() as nursery:
            nursery.start_soon(_start, responder, host, tag, tell)
            yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(responder.close)


async def _start(responder: _Responder, host: _Host, tag: str, tell: Found) -> None:
    try:
        await trio.to_thread.run_sync(responder.start, host, tag, tell)
    except (OSError, zeroconf.Error) as error:
        _log.warning("mdns_unavailable", error=repr(error))


def mesh_tag(mesh: _Mesh) -> str:
    """16 hex digits."""
    return blake3(mesh.membership_key, derive_key_context=_TAG_CONTEXT).hexdigest(length=8)


class _Responder:
    """The library's threads for one host. Every method blocks."""

    def __init__(self, connection: Zeroconf) -> None:
        self._zeroconf = connection
        self._browser: ServiceBrowser | None = None

    def start(self, host: _Host, tag: str, tell: Found) -> None:
        """Browse, then announce; both go on until `close`."""
        listener = _Listener(tag, tell)
        self._browser = ServiceBrowser(self._zeroconf, SERVICE_TYPE, listener=listener)
        service = describe(host.peer_id, host.addresses(), tag)
        if service is not None:
            self._zeroconf.register_service(service)

    def close(self) -> None:
        """Say goodbye on the network and join the threads."""
        if self._browser is not None:
            self._browser.cancel()  # `Zeroconf.close` does not wait for this thread
        self._zeroconf.close()


def describe(peer: PeerId, addresses: Sequence[str], tag: str) -> ServiceInfo | None:
    """The DNS-SD record of a host; None when it has no numeric address to announce."""
    parsed = [parse_address(address) for address in addresses[:_MAX_ADDRESSES]]
    numeric = [address for address in parsed if address.is_numeric]
    if not numeric:
        return None
    texts = {f"a{number}": address for number, address in enumerate(addresses[:_MAX_ADDRESSES])}
    return ServiceInfo(
        SERVICE_TYPE,
        # DNS labels have at most 63 bytes; an Ed25519 peer id has 52 characters.
        f"{str(peer)[-60:]}.{SERVICE_TYPE}",
        port=numeric[0].port,
        addresses=[ipaddress.ip_address(address.host).packed for address in numeric],
        properties={"id": str(peer), "mesh": tag, **texts},
        server=f"{str(peer)[-60:]}.local.",
    )


def understand(
    properties: Mapping[bytes, bytes | None], tag: str
) -> tuple[PeerId, list[str]] | None:
    """Who announces itself with these TXT properties; None for other meshes and nonsense."""
    if properties.get(b"mesh") != tag.encode("ascii"):
        return None
    try:
        peer = PeerId.parse((properties.get(b"id") or b"").decode("ascii"))
    except (FormatError, UnicodeDecodeError):
        return None
    addresses = []
    for number in range(_MAX_ADDRESSES):
        text = (properties.get(b"a%d" % number) or b"")[:MAX_ADDRESS_CHARS]
        try:
            parse_address(text.decode("ascii"))
        except ValueError:  # UnicodeDecodeError is one too
            continue
        addresses.append(text.decode("ascii"))
    return peer, addresses


class _Listener(ServiceListener):
    """Called in the library's browser thread."""

    def __init__(self, tag: str, tell: Found) -> None:
        self._tag = tag
        self._tell = tell

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        service = zc.get_service_info(type_, name, timeout=_RESOLVE_TIMEOUT_MS)
        member = understand(service.properties, self._tag) if service is not None else None
        if member is not None:
            self._tell(*member)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Nothing to do: whether a peer is gone is for its connection to say."""
