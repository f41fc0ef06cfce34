"""What every part of one DHT shares: the way to peers, the clock, the settings, the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import trio

from .backend import RecordBackend, RowWriter
from .client import Client
from .contacts import Contacts
from .counters import Counters
from .host import Host
from .peer_id import PeerId
from .rpc import Rpc
from .settings import DhtSettings
from .validators import Validators


@dataclass(frozen=True, slots=True)
class DhtContext:
    """Made once per DHT; nothing here is ever replaced."""

    host: Host
    nursery: trio.Nursery
    settings: DhtSettings
    counters: Counters
    rows: RowWriter
    contacts: Contacts
    rpc: Rpc
    client: Client
    validators: Validators
    """Nothing is stored or returned that these refuse."""
    wall_clock: Callable[[], float]
    """Unix time; records expire by it."""
    rng: random.Random

    @property
    def own(self) -> PeerId:
        return self.host.peer_id

    @classmethod
    def over(
        cls,
        host: Host,
        nursery: trio.Nursery,
        backend: RecordBackend,
        settings: DhtSettings,
        wall_clock: Callable[[], float],
        rng: random.Random,
        realm: bytes = b"",
    ) -> DhtContext:
        counters = Counters()
        rows = RowWriter(backend, counters)
        contacts = Contacts(host, settings.k, rows, counters)
        rpc = Rpc(host, contacts, counters)
        validators = Validators(realm)
        client = Client(rpc, contacts, validators)
        return cls(
            host,
            nursery,
            settings,
            counters,
            rows,
            contacts,
            rpc,
            client,
            validators,
            wall_clock,
            rng,
        )
