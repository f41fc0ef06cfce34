"""Real hosts on loopback."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from meshnode.dht.peer_id import PeerId
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.limits import HostLimits


@dataclass(frozen=True, slots=True)
class KeyOnly:
    """The part of an identity a host needs, from a seed."""

    private_key: bytes

    @property
    def peer_id(self) -> PeerId:
        public = Ed25519PrivateKey.from_private_bytes(self.private_key).public_key()
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        return PeerId.from_ed25519(public.public_bytes(*raw))


class Hosts:
    """Opens hosts that know each other's addresses only when told."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._count = 0

    async def open(
        self,
        limits: HostLimits | None = None,
        *,
        listen: str = "/ip4/127.0.0.1/tcp/0",
        spared: Collection[PeerId] = (),
    ) -> Libp2pHost:
        self._count += 1
        identity = KeyOnly(self._count.to_bytes(32, "big"))
        listen_on = [listen] if listen else []
        return await self._stack.enter_async_context(
            open_libp2p_host(identity, listen=listen_on, limits=limits, spared=spared)
        )

    async def pair(self, limits: HostLimits | None = None) -> tuple[Libp2pHost, Libp2pHost]:
        """Two hosts, the first of which knows where the second one is."""
        one, other = await self.open(limits), await self.open(limits)
        one.add_addresses(other.peer_id, other.addresses())
        return one, other


@asynccontextmanager
async def opened() -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        yield Hosts(stack)


def with_hosts(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Pass the test a `Hosts` as its first argument.

    Not a fixture: hosts are opened in the task of the test and must be closed there too.
    """

    async def run(**others: object) -> None:
        async with opened() as hosts:
            await test(hosts, **others)

    functools.update_wrapper(run, test)
    parameters = list(inspect.signature(test).parameters.values())[1:]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
