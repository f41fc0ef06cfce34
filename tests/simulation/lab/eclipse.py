"""A fifth of all nodes collude to make one key disappear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio
from meshnode.dht import kad_wire, records_wire
from meshnode.dht.kad_wire import KadMessage, PeerAddresses
from meshnode.dht.keyspace import PeerIndex, chunk_position, peer_position, position
from meshnode.dht.peer_id import PeerId
from meshnode.dht.settings import KAD_PROTOCOL, RECORDS_PROTOCOL
from meshnode.node.identity import Identity

from .lookups import fresh_keys, share_found
from .mesh import Lab, LabNode
from .quick import QuickHost

_READERS = 20


def generate_near(lab: Lab, target: int, count: int, tries: int) -> list[Identity]:
    """`count` keys whose peers lie near `target`: the best of `tries` generated in all."""
    made = [Identity.from_seed(lab.rng.randbytes(32)) for _ in range(max(count, tries))]
    return sorted(made, key=lambda signer: peer_position(signer.peer_id) ^ target)[:count]


class Ring:
    """Colluding nodes: they join as others do, and name nobody but `named`."""

    def __init__(self, named: Sequence[LabNode], k: int) -> None:
        self._k = k
        self._addresses = {node.peer: (node.address,) for node in named}
        self._index = PeerIndex(self._addresses)

    def corrupt(self, node: LabNode) -> None:
        """From now on `node` lies to everybody."""
        assert isinstance(node.host, QuickHost)
        node.host.answerers[KAD_PROTOCOL] = self._kad
        node.host.answerers[RECORDS_PROTOCOL] = self._records

    def _near(self, target: int) -> tuple[PeerAddresses, ...]:
        near = self._index.closest(target, self._k)
        return tuple(PeerAddresses(peer, self._addresses[peer]) for peer in near)

    def _kad(self, _: PeerId, frame: bytes) -> bytes:
        """No provider, no value, thanks for what it is given, and always the ring for an answer."""
        asked = kad_wire.decode_message(frame)
        closer = self._near(position(asked.key))
        return kad_wire.encode_message(KadMessage(asked.kind, asked.key, asked.value, closer))

    def _records(self, _: PeerId, frame: bytes) -> bytes:
        """Claims to have stored everything, to find nothing, and to know the whole mesh."""
        answer: records_wire.Answer
        match records_wire.decode_request(frame):
            case records_wire.Announce(digests=digests):
                stored = records_wire.Verdict.STORED
                answer = records_wire.Verdicts((stored,) * len(digests))
            case records_wire.Find(digests=digests):
                answer = records_wire.Found((), ((),) * len(digests))
            case records_wire.Withdraw():
                answer = records_wire.Withdrawn(0)
            case records_wire.Near(targets=targets):
                peers = {entry.peer: entry for target in targets for entry in self._near(target)}
                answer = records_wire.Neighbours(0, tuple(peers.values())[:256])
        return records_wire.encode_answer(answer)


@dataclass(frozen=True, slots=True)
class Eclipse:
    """Shares of readers, or of keys, that found an honest holder. `surrounded`: the share of the k
    nearest to the victim's key that collude; `honest_storers` of it, of those that said so."""

    nodes: int
    colluders: int
    tries: int
    subtle: bool
    surrounded: float
    said_stored: int
    honest_storers: int
    victim_found: float
    others_found: float


async def measure_eclipse(
    lab: Lab, honest: int, colluders: int, tries: int, *, subtle: bool = False
) -> Eclipse:
    """A mesh of honest nodes and a ring that surrounds one key, then announced and looked for.

    The ring names nobody but itself, or (`subtle`) everybody but the k honest nodes that are
    nearest to the key.
    """
    victim = lab.rng.randbytes(32)
    target = chunk_position(victim)
    good = [lab.add() for _ in range(honest)]
    bad = [lab.add(signer) for signer in generate_near(lab, target, colluders, tries)]
    hidden = sorted(good, key=lambda node: peer_position(node.peer) ^ target)[: lab.settings.k]
    named = [node for node in lab.nodes if node not in hidden] if subtle else bad
    ring = Ring(named, lab.settings.k)
    await lab.settle([*good, *bad])
    await trio.sleep(60)  # a full map takes some rounds to be complete
    for node in bad:
        ring.corrupt(node)
    nearest = lab.index().closest(target, lab.settings.k)
    evil = {node.peer for node in bad}
    publisher = lab.rng.choice(good)
    others = fresh_keys(lab, 200)
    report = await publisher.dht.announce([(victim, 1 << 20)])
    await publisher.dht.announce(others)
    holders = {digest: {publisher} for digest, _ in others}
    readers = lab.rng.sample([node for node in good if node is not publisher], _READERS)
    victim_found, others_found = 0.0, 0.0
    for reader in readers:
        victim_found += share_found(await reader.dht.find_chunks([victim]), {victim: {publisher}})
        others_found += share_found(await reader.dht.find_chunks(list(holders)), holders)
    kept = [bool(node.dht._chunks.holders(victim, 0.0)) for node in good if node is not publisher]
    return Eclipse(
        nodes=honest + colluders,
        colluders=colluders,
        tries=tries,
        subtle=subtle,
        surrounded=sum(peer in evil for peer in nearest) / len(nearest),
        said_stored=report.stored[victim],
        honest_storers=sum(kept),
        victim_found=victim_found / len(readers),
        others_found=others_found / len(readers),
    )
