"""The local store: chunks and small persistent tables on this disk.

`open_store` gives a `Store` whose `chunks` are durable when `put` returns and verified when `get`
returns, whatever happened to process and power in between; `docs/store.md` argues why and shows
every byte. This room knows nothing of peers, keys or manifests: a chunk is bytes with a digest.
"""

from .memory import MemoryStore
from .opening import SEGMENT_BYTES, Store, open_store
from .protocol import MAX_CHUNK_BYTES, Buffer, ChunkStore, Digest, StoreStats
from .segment_store import OnQuarantine, Quarantined
from .tables import KeyValue, RecordTable, Row

__all__ = [
    "MAX_CHUNK_BYTES",
    "SEGMENT_BYTES",
    "Buffer",
    "ChunkStore",
    "Digest",
    "KeyValue",
    "MemoryStore",
    "OnQuarantine",
    "Quarantined",
    "RecordTable",
    "Row",
    "Store",
    "StoreStats",
    "open_store",
]
