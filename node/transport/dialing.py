"""Dialling a peer: all its addresses, staggered, once at a time, with back-off.

The order of attempts follows RFC 8305 ("happy eyeballs"): each address gets a short head start over
the next, and a failed one yields its turn at once.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from ...dht.peer_id import PeerId
from ...errors import PeerError
from .address_book import AddressBook
from .limits import HostLimits

DialOne = Callable[[PeerId, str], Awaitable[None]]
"""Dials one address and returns when the connection is up; PeerError when it does not."""

_MAX_REMEMBERED_FAILURES = 4096

_log = structlog.get_logger(__name__)


class Backoff:
    """Exponential back-off with jitter per peer, bounded in peers."""

    def __init__(self, base: float, cap: float, rng: random.Random) -> None:
        self._base = base
        self._cap = cap
        self._rng = rng
        self._failures: OrderedDict[PeerId, tuple[int, float, str]] = OrderedDict()

    def check(self, peer: PeerId) -> None:
        """Raise PeerError while `peer` may not be tried again."""
        count, until, reason = self._failures.get(peer, (0, 0.0, ""))
        wait = until - trio.current_time()
        if count and wait > 0:
            raise PeerError(
                f"{reason} Next attempt in {wait:.1f} s, after {count} failed in a row."
            )

    def failed(self, peer: PeerId, reason: str) -> None:
        count = self._failures.pop(peer, (0, 0.0, ""))[0] + 1
        longest = min(self._cap, self._base * 2.0 ** min(count - 1, 16))
        until = trio.current_time() + longest * self._rng.uniform(0.5, 1.0)
        self._failures[peer] = (count, until, reason)
        if len(self._failures) > _MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def clear(self, peer: PeerId) -> None:
        self._failures.pop(peer, None)


@dataclass(slots=True, eq=False)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    error: str = ""


@dataclass(slots=True, eq=False)
class _Attempts:
    """What the staggered attempts of one dial share."""

    connected: str | None = None
    failures: list[str] = field(default_factory=list)


class Dialler:
    """Single-flight dials: however many callers want a peer, one dial runs in the host's nursery.

    The dial belongs to the host, so a caller that is cancelled does not spoil it for the others.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        book: AddressBook,
        dial_one: DialOne,
        is_connected: Callable[[PeerId], bool],
        limits: HostLimits,
        rng: random.Random,
    ) -> None:
        self._nursery = nursery
        self._book = book
        self._dial_one = dial_one
        self._is_connected = is_connected
        self._limits = limits
        self._flights: dict[PeerId, _Flight] = {}
        self.backoff = Backoff(limits.backoff_base, limits.backoff_cap, rng)

    async def dial(self, peer: PeerId) -> None:
        """Bring up a connection to `peer`.

        Raises:
            PeerError: unknown address, in back-off, or no address answered within the deadline.
        """
        flight = self._flights.get(peer)
        if flight is None:
            self.backoff.check(peer)
            flight = self._flights[peer] = _Flight()
            self._nursery.start_soon(self._fly, peer, flight)
        await flight.done.wait()
        if flight.error:
            raise PeerError(flight.error)

    def connected(self, peer: PeerId) -> None:
        """A connection to `peer` is up that it has made: nobody has to wait or to back off.

        A dial under way goes on. If it is ended here as the peer's is ended there, none is left.
        """
        self.backoff.clear(peer)
        if (flight := self._flights.get(peer)) is not None:
            flight.error = ""
            flight.done.set()

    async def _fly(self, peer: PeerId, flight: _Flight) -> None:
        flight.error = f"The dial to peer {peer.short} was given up: the host is closing."
        try:
            error = await self._try_addresses(peer)
            if flight.done.is_set():
                return  # it had dialled us meanwhile, whatever has become of that
            if self._is_connected(peer):
                flight.error = ""
                self.backoff.clear(peer)
            else:
                flight.error = error or f"The connection to peer {peer.short} was lost at once."
                self.backoff.failed(peer, flight.error)
        finally:
            del self._flights[peer]
            flight.done.set()

    async def _try_addresses(self, peer: PeerId) -> str:
        """Empty when connected, else what to tell the callers."""
        addresses = self._book.get(peer)
        if not addresses:
            return f"No address of peer {peer.short} is known."
        attempts = _Attempts()
        with trio.move_on_after(self._limits.dial_timeout):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(
                        self._attempt, peer, address, attempts, failed, nursery.cancel_scope
                    )
                    with trio.move_on_after(self._limits.dial_stagger):
                        await failed.wait()
        if attempts.connected is not None:
            self._book.prefer(peer, attempts.connected)
            return ""
        silent = len(addresses) - len(attempts.failures)
        if silent:
            attempts.failures.append(
                f"{silent} of {len(addresses)} addresses silent for {self._limits.dial_timeout:g} s"
            )
        return f"Peer {peer.short} cannot be reached: {'; '.join(attempts.failures)}."

    async def _attempt(
        self,
        peer: PeerId,
        address: str,
        attempts: _Attempts,
        failed: trio.Event,
        all_attempts: trio.CancelScope,
    ) -> None:
        try:
            await self._dial_one(peer, address)
        except PeerError as error:
            attempts.failures.append(f"{address} {error.message}")
            failed.set()
        except Exception:  # noqa: BLE001 - task boundary: an address costs itself, not the host
            _log.warning("dial_crashed", peer=str(peer), address=address, exc_info=True)
            attempts.failures.append(f"{address} failed in a way nobody foresaw; see the log")
            failed.set()
        else:
            attempts.connected = address
            all_attempts.cancel()
