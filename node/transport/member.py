"""The gate of the mesh: a `Host` that serves nobody but peers who have proved their membership.

Participants: whoever opens a stream to a peer proves first, once per connection, with
`/meshnode/hello/1`; the proof is mutual. Goals: a stranger is served no other protocol, learns of
none that it exists, holds no connection for long, and learns why from no answer; a member notices
nothing but the first round trips. Non-goal: keeping strangers from connecting at all (they must, to
prove anything).

In an open mesh there is nothing to keep from anybody: identify, ping and the protocols named public
are served without proof, to whoever speaks libp2p, and such a connection may last.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
import trio

from ...dht.host import ConnectionEvent, Host, Stream, StreamHandler
from ...dht.peer_id import PeerId
from ...errors import FormatError, MembershipError, MeshError, PeerError
from ..identity import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    REFUSAL,
    Initiator,
    MemberInfo,
    Mesh,
    Responder,
)
from .connection_events import EventHub
from .dialing import Backoff
from .identify import IDENTIFY_PROTOCOL
from .owned_nursery import open_owned_nursery
from .ping import PING_PROTOCOL
from .strangers import GatedHost
from .streams import BufferedStream

__all__ = ["GateLimits", "MemberHost", "open_member_host"]

_log = structlog.get_logger(__name__)

_REFUSAL_READ_TIMEOUT = 1.0
_MAX_REMEMBERED_MEMBERS = 4096


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Bounds of the gate; times in seconds."""

    proof_timeout: float = 5.0
    """One exchange of proofs."""
    unproven_timeout: float = 10.0
    """A connected peer that has proved nothing for so long is disconnected."""
    max_unproven: int = 64
    """Connected peers without proof; beyond it the one that has been so longest goes."""
    backoff_base: float = 5.0
    backoff_cap: float = 300.0
    """After a refusal; asking again changes nothing until somebody joins another mesh."""


@dataclass(slots=True, eq=False)
class _Proof:
    """A proof under way, shared by all who wait for it."""

    done: trio.Event = field(default_factory=trio.Event)
    error: MeshError | None = None


@dataclass(slots=True, eq=False)
class _Stay:
    """A connected peer that has not proved anything yet."""

    over: trio.Event = field(default_factory=trio.Event)
    unwelcome: bool = False
    """It has to make room for another one."""


class MemberHost:
    """Wraps a host; implements `Host` for proven members only, and the `Gate` of a real host.

    Made by `open_member_host`.
    """

    def __init__(
        self,
        inner: Host,
        mesh: Mesh,
        info: MemberInfo,
        nursery: trio.Nursery,
        limits: GateLimits,
        public: Collection[str],
    ) -> None:
        self.rejected_streams = 0
        """Streams of strangers, for any protocol but the proof."""
        self.refused_proofs = 0
        self._inner = inner
        self._mesh = mesh
        self._info = info
        self._nursery = nursery
        self._limits = limits
        self._public = (
            frozenset({IDENTIFY_PROTOCOL, PING_PROTOCOL, *public}) if mesh.open else frozenset()
        )
        self._proven: dict[PeerId, MemberInfo] = {}
        self._members: frozenset[PeerId] = frozenset()
        self._met: OrderedDict[PeerId, None] = OrderedDict()
        self._proofs: dict[PeerId, _Proof] = {}
        self._unproven: OrderedDict[PeerId, _Stay] = OrderedDict()
        self._refusals = Backoff(limits.backoff_base, limits.backoff_cap, random.Random())
        self._hub = EventHub()
        self._closed = False
        inner.set_handler(PROTOCOL, self._serve_proof)
        if isinstance(inner, GatedHost):
            inner.set_gate(self)

    # --- the face of a host -------------------------------------------------------------------

    @property
    def peer_id(self) -> PeerId:
        return self._inner.peer_id

    def addresses(self) -> list[str]:
        return self._inner.addresses()

    def known_addresses(self, peer: PeerId) -> list[str]:
        return self._inner.known_addresses(peer)

    def add_addresses(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self._inner.add_addresses(peer, addresses)

    def connected_peers(self) -> frozenset[PeerId]:
        return self._members

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ConnectionEvent]]:
        return self._hub.subscribe()

    def member_info(self, peer: PeerId) -> MemberInfo | None:
        """What a connected member told about itself; None for everybody else."""
        return self._proven.get(peer)

    async def connect(self, peer: PeerId) -> None:
        if peer not in self._proven:
            self._heed_refusal(peer)
        await self._inner.connect(peer)
        if peer not in self._proven:
            await self._prove(peer)

    async def disconnect(self, peer: PeerId) -> None:
        await self._inner.disconnect(peer)

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        await self.connect(peer)
        try:
            return await self._inner.open_stream(peer, protocol)
        except PeerError:
            if peer in self._proven:
                raise
        # It was lost on the way. If the host has dialled anew, that connection had no proof yet.
        await self.connect(peer)
        return await self._inner.open_stream(peer, protocol)

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._inner.set_handler(protocol, partial(self._admit, handler, protocol))

    def stats(self) -> dict[str, int]:
        """Counters of the gate and, where it has some, of the host behind it."""
        return {
            **(self._inner.stats() if isinstance(self._inner, GatedHost) else {}),
            "gate_strangers": len(self._unproven),
            "gate_streams_rejected": self.rejected_streams,
            "gate_proofs_refused": self.refused_proofs,
        }

    # --- the face of a gate -------------------------------------------------------------------

    def trusts(self, peer: PeerId) -> bool:
        # One that was a member may reconnect and upload before we have noticed.
        return peer in self._met

    def shows(self, peer: PeerId, protocol: str) -> bool:
        if protocol == PROTOCOL or protocol in self._public:
            return True
        return not self._closed and (peer in self._proven or peer in self._met)

    async def admits(self, peer: PeerId, protocol: str) -> bool:
        if self.shows(peer, protocol):
            return True
        if (proof := self._proofs.get(peer)) is not None:
            # It may have heard our verdict, and opened this stream, before we have read its.
            await proof.done.wait()
            if self.shows(peer, protocol):
                return True
        self.rejected_streams += 1
        return False

    # --- our proof to a peer ------------------------------------------------------------------

    def _heed_refusal(self, peer: PeerId) -> None:
        try:
            self._refusals.check(peer)
        except PeerError as error:
            raise MembershipError(error.message) from error

    async def _prove(self, peer: PeerId) -> None:
        """Prove and be proved to, once however many wait for it.

        Raises:
            MembershipError: the peer is in another mesh or in none.
            PeerError: it was lost, or did not answer in time.
        """
        proof = self._proofs.get(peer)
        if proof is None:
            if self._closed:
                raise PeerError("This node is shutting down.")
            proof = self._proofs[peer] = _Proof()
            self._nursery.start_soon(self._run_proof, peer, proof)
        await proof.done.wait()
        if proof.error is not None:
            raise type(proof.error)(proof.error.message, hint=proof.error.hint)

    async def _run_proof(self, peer: PeerId, proof: _Proof) -> None:
        proof.error = PeerError("This node is shutting down.")
        try:
            await self._initiate(peer)
            proof.error = None
        except MembershipError as error:
            proof.error = error
            self._refusals.failed(peer, error.message)
            await self._inner.disconnect(peer)
        except PeerError as error:
            proof.error = PeerError(error.message, hint=error.hint)
        finally:
            del self._proofs[peer]
            proof.done.set()

    async def _initiate(self, peer: PeerId) -> None:
        side = Initiator(self._mesh, self.peer_id, peer, self._our_info())
        with trio.move_on_after(self._limits.proof_timeout):
            stream = BufferedStream(await self._inner.open_stream(peer, PROTOCOL))
            try:
                await stream.write_frame(side.hello())
                answer = await stream.read_frame(MAX_MESSAGE_BYTES)
                await stream.write_frame(side.receive_answer(answer))
                info = side.receive_verdict(await stream.read_frame(MAX_MESSAGE_BYTES))
            except FormatError as error:
                raise MembershipError(error.message) from error
            finally:
                await stream.close()
            self._accept(peer, info)
            return
        raise PeerError(
            f"Peer {peer.short} did not prove its membership within "
            f"{self._limits.proof_timeout:g} s."
        )

    def _our_info(self) -> MemberInfo:
        return replace(self._info, addresses=tuple(self._inner.addresses()))

    # --- their proof to us --------------------------------------------------------------------

    async def _serve_proof(self, inner: Stream) -> None:
        stream = BufferedStream(inner)
        with trio.move_on_after(self._limits.proof_timeout) as late:
            try:
                await self._respond(stream)
            except (MembershipError, FormatError) as error:
                _log.debug("membership_refused", peer=str(inner.peer), reason=error.message)
                await self._refuse(stream)
        if late.cancelled_caught:
            await stream.reset()

    async def _respond(self, stream: BufferedStream) -> None:
        side = Responder(self._mesh, self.peer_id, stream.peer, self._our_info())
        hello = await stream.read_frame(MAX_MESSAGE_BYTES)
        await stream.write_frame(side.receive_hello(hello))
        verdict = side.receive_proof(await stream.read_frame(MAX_MESSAGE_BYTES))
        # Before the verdict is out, so that what the peer opens next finds it a member.
        self._accept(stream.peer, side.remote_info)
        await stream.write_frame(verdict)

    async def _refuse(self, stream: BufferedStream) -> None:
        self.refused_proofs += 1
        await stream.write_frame(REFUSAL)
        await stream.close()
        with trio.move_on_after(_REFUSAL_READ_TIMEOUT):
            await stream.at_end()  # let the peer read the refusal before the connection goes
        if stream.peer not in self._proven:
            await self._inner.disconnect(stream.peer)

    async def _admit(self, handler: StreamHandler, protocol: str, stream: Stream) -> None:
        """Serve an inbound stream if its peer is a member, or anybody may have it."""
        peer = stream.peer
        if protocol in self._public:
            await handler(stream)
            return
        if peer not in self._proven and peer in self._met and not self._closed:
            # It was a member a moment ago, and does not know that we lost its last connection.
            try:
                await self._prove(peer)
            except MeshError as error:
                _log.debug("member_not_proved_again", peer=str(peer), reason=error.message)
        if peer in self._proven and not self._closed:
            await handler(stream)
        else:
            self.rejected_streams += 1
            await stream.reset()

    def _accept(self, peer: PeerId, info: MemberInfo) -> None:
        self._inner.add_addresses(peer, info.addresses)
        self._refusals.clear(peer)
        self._met[peer] = None
        self._met.move_to_end(peer)
        if len(self._met) > _MAX_REMEMBERED_MEMBERS:
            self._met.popitem(last=False)
        if isinstance(self._inner, GatedHost):
            self._inner.trust(peer)
        self._no_longer_unproven(peer)
        if peer not in self._inner.connected_peers():
            return
        is_new = peer not in self._proven
        self._proven[peer] = info
        if is_new:
            self._members = frozenset(self._proven)
            self._hub.publish(ConnectionEvent(peer, connected=True))

    # --- connections of the inner host --------------------------------------------------------

    async def watch(self, events: trio.MemoryReceiveChannel[ConnectionEvent]) -> None:
        """Forget proofs with the last connection, and show strangers the door; until cancelled.

        An event is a reason to look, no more: under a flood of them some are lost.
        """
        async for _ in events:
            connected = self._inner.connected_peers()
            self._forget_lost(connected)
            for peer in connected - self._proven.keys() - self._unproven.keys():
                self._await_proof(peer)

    def _await_proof(self, peer: PeerId) -> None:
        while len(self._unproven) >= self._limits.max_unproven:
            _, longest = self._unproven.popitem(last=False)
            longest.unwelcome = True
            longest.over.set()
        stay = self._unproven[peer] = _Stay()
        self._nursery.start_soon(self._expire, peer, stay)

    async def _expire(self, peer: PeerId, stay: _Stay) -> None:
        patience = math.inf if self._public else self._limits.unproven_timeout
        with trio.move_on_after(patience):
            await stay.over.wait()
        if self._unproven.get(peer) is stay:
            del self._unproven[peer]
            stay.unwelcome = True
        if stay.unwelcome and peer not in self._proven:
            await self._inner.disconnect(peer)

    def _no_longer_unproven(self, peer: PeerId) -> None:
        stay = self._unproven.pop(peer, None)
        if stay is not None:
            stay.over.set()

    def _forget_lost(self, connected: frozenset[PeerId]) -> None:
        for peer in [peer for peer in self._proven if peer not in connected]:
            del self._proven[peer]
            self._members = frozenset(self._proven)
            self._hub.publish(ConnectionEvent(peer, connected=False))
        for peer in [peer for peer in self._unproven if peer not in connected]:
            self._no_longer_unproven(peer)

    def close(self) -> None:
        """Admit nobody any more."""
        self._closed = True


@asynccontextmanager
async def open_member_host(
    inner: Host,
    mesh: Mesh,
    info: MemberInfo,
    *,
    limits: GateLimits | None = None,
    public: Collection[str] = (),
) -> AsyncIterator[MemberHost]:
    """A gate in front of `inner` for the members of `mesh`.

    Args:
        inner: closed by the caller, after this.
        mesh: ours.
        info: what we tell members about this node; its addresses are taken from `inner` each time.
        public: protocols that an open mesh serves to anybody; a closed one never does.
    """
    async with open_owned_nursery() as nursery, inner.events() as events:
        host = MemberHost(inner, mesh, info, nursery, limits or GateLimits(), public)
        nursery.start_soon(host.watch, events)
        try:
            yield host
        finally:
            host.close()
