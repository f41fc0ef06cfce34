"""The distributed hash table: which peers exist, who holds which chunk, where manifests are.

Kademlia over a `Host`, in the libp2p wire format, with batches for chunk records. It knows peers,
keys and records; it must not know files, chunks' bytes, sockets, or anything of `node/`.

Names are imported on first use: many rooms need `dht.host` and `dht.peer_id` alone, and the schema
of the wire comes with the network library, which takes most of a second to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import MemoryBackend, RecordBackend, Row, RowId
    from .contacts import PeerEntry
    from .publisher import AnnounceReport, PeerFailure
    from .records import ChunkRecord
    from .service import Dht, open_dht
    from .settings import MAX_VALUE_BYTES, DhtSettings
    from .value_publisher import StoreReport

__all__ = [
    "MAX_VALUE_BYTES",
    "AnnounceReport",
    "ChunkRecord",
    "Dht",
    "DhtSettings",
    "MemoryBackend",
    "PeerEntry",
    "PeerFailure",
    "RecordBackend",
    "Row",
    "RowId",
    "StoreReport",
    "open_dht",
]

_HOME_OF = {
    "MAX_VALUE_BYTES": ".settings",
    "AnnounceReport": ".publisher",
    "ChunkRecord": ".records",
    "Dht": ".service",
    "DhtSettings": ".settings",
    "MemoryBackend": ".backend",
    "PeerEntry": ".contacts",
    "PeerFailure": ".publisher",
    "RecordBackend": ".backend",
    "Row": ".backend",
    "RowId": ".backend",
    "StoreReport": ".value_publisher",
    "open_dht": ".service",
}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home, __name__), name)
