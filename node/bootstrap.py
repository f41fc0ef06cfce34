"""Finding the mesh: configured and invited-to addresses, remembered peers, the local network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog
import trio

from ..dht.host import Host
from ..dht.peer_id import PeerId
from ..errors import FormatError, MeshError

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_SECS = 60.0
_SHORTEST_PAUSE_SECS = 1.0
_ENOUGH_PEERS = 20
_VISIT_SECS = 1800.0
_MOST_FOUND = 64


class _Dht(Protocol):
    async def bootstrap(self, peers: list[PeerId]) -> int: ...


def split_address(address: str) -> tuple[PeerId, str]:
    """A multiaddr that ends in `/p2p/ID` as (ID, the part before).

    Raises:
        FormatError: it does not.
    """
    transport, _, text = address.rpartition("/p2p/")
    if not transport:
        raise FormatError(f"{address!r} does not say whose address it is (/p2p/...).")
    return PeerId.parse(text), transport


class Bootstrap:
    """Joins the mesh and joins again whenever this node finds itself alone; one task, `run`.

    Args:
        addresses: multiaddrs ending in `/p2p/ID`, of members that may be up.
    """

    def __init__(self, host: Host, dht: _Dht, addresses: Iterable[str]) -> None:
        self._host = host
        self._dht = dht
        self._peers: list[PeerId] = []
        self._found: dict[PeerId, None] = {}
        self._wake = trio.Event()
        self.attempted = trio.Event()
        """Set when the first attempt has ended, well or not."""
        for address in addresses:
            peer, transport = split_address(address)
            host.add_addresses(peer, [transport])
            if peer != host.peer_id and peer not in self._peers:
                self._peers.append(peer)

    def found(self, peer: PeerId, addresses: list[str]) -> None:
        """A peer was discovered on the local network: try it soon."""
        if peer == self._host.peer_id:
            return
        self._host.add_addresses(peer, addresses)
        if peer in self._host.connected_peers() or peer in self._found:
            return
        # Anybody on the local network can announce any number of peers.
        while len(self._found) >= _MOST_FOUND:
            self._found.pop(next(iter(self._found)))
        self._found[peer] = None
        self._wake.set()

    async def run(self) -> None:
        """Look for members until cancelled: often while news comes in, ever less often then.

        Also when connected: two nodes that joined by way of a third at the same moment learn of
        each other only by looking again. With many peers, seldom: the few members that everybody
        was told of would be busy with nothing else.
        """
        pause, last = _SHORTEST_PAUSE_SECS, -1
        while True:
            self._wake = trio.Event()
            known = await self._look()
            if known != last:
                log.info("bootstrapped", known_peers=known)
                pause = _SHORTEST_PAUSE_SECS
            last = known
            self.attempted.set()
            looked = trio.current_time()
            await trio.sleep(_SHORTEST_PAUSE_SECS)
            while not await self._woken(pause) and pause == _LONGEST_PAUSE_SECS:
                if not self._is_settled() or trio.current_time() - looked >= _VISIT_SECS:
                    break
            pause = _SHORTEST_PAUSE_SECS if self._wake.is_set() else pause
            pause = min(2 * pause, _LONGEST_PAUSE_SECS)

    def _is_settled(self) -> bool:
        return len(self._host.connected_peers()) >= _ENOUGH_PEERS

    async def _woken(self, within: float) -> bool:
        with trio.move_on_after(within):
            await self._wake.wait()
            return True
        return False

    async def _look(self) -> int:
        """How many peers the DHT knows after another attempt."""
        found, self._found = self._found, {}
        try:
            return await self._dht.bootstrap([*self._peers, *found])
        except MeshError as error:
            log.warning("bootstrap_failed", error=str(error))
            return -1
