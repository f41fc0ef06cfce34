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
    from .finder import ChunksAnswer
    from .handover import HandoverReport
    from .names import NameRecord, sign_name
    from .notices import Notice, sign_notice
    from .publisher import AnnounceReport, PeerFailure
    from .records import ChunkRecord
    from .service import Dht, open_dht
    from .settings import MAX_VALUE_BYTES, DhtSettings
    from .signing import Signer
    from .trace import PeerAsked, QueryReport
    from .value_publisher import StoreReport
    from .value_reader import ManifestAnswer, NameAnswer, NoticesAnswer

__all__ = [
    "MAX_VALUE_BYTES",
    "AnnounceReport",
    "ChunkRecord",
    "ChunksAnswer",
    "Dht",
    "DhtSettings",
    "HandoverReport",
    "ManifestAnswer",
    "MemoryBackend",
    "NameAnswer",
    "NameRecord",
    "Notice",
    "NoticesAnswer",
    "PeerAsked",
    "PeerEntry",
    "PeerFailure",
    "QueryReport",
    "RecordBackend",
    "Row",
    "RowId",
    "Signer",
    "StoreReport",
    "open_dht",
    "sign_name",
    "sign_notice",
]

_HOME_OF = {
    "MAX_VALUE_BYTES": ".settings",
    "AnnounceReport": ".publisher",
    "ChunkRecord": ".records",
    "ChunksAnswer": ".finder",
    "Dht": ".service",
    "DhtSettings": ".settings",
    "HandoverReport": ".handover",
    "ManifestAnswer": ".value_reader",
    "MemoryBackend": ".backend",
    "NameAnswer": ".value_reader",
    "NameRecord": ".names",
    "Notice": ".notices",
    "NoticesAnswer": ".value_reader",
    "PeerAsked": ".trace",
    "PeerEntry": ".contacts",
    "PeerFailure": ".publisher",
    "QueryReport": ".trace",
    "RecordBackend": ".backend",
    "Row": ".backend",
    "RowId": ".backend",
    "Signer": ".signing",
    "StoreReport": ".value_publisher",
    "open_dht": ".service",
    "sign_name": ".names",
    "sign_notice": ".notices",
}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home, __name__), name)
