"""The chunk protocol `/meshnode/chunk/1`: ask peers for chunks, serve ours, and know each peer.

`open_exchange` is the client side, `serve` the server side, `PeerStatsTable` what was learned about
peers: latency, throughput, success, breaker. This room must not know files, manifests or keys of
content; it moves chunks by digest, and leaves to the scheduler whom to ask and when to try again.
"""

from .backoff import Backoff
from .breaker import BreakerState
from .client import Exchange, open_exchange
from .lanes import Lane
from .messages import PROTOCOL, PeerInfo, Reason
from .receipts import Receipt
from .server import ChunkServer, serve
from .service import Kept
from .serving import ServerCounts
from .settings import DEFAULT_LEASE_SECS, ExchangeSettings, ServerLimits
from .stats import KeyValue, PeerStats, PeerStatsTable
from .traffic import BandwidthLimits, Pipe, Traffic, open_traffic

__all__ = [
    "DEFAULT_LEASE_SECS",
    "PROTOCOL",
    "Backoff",
    "BandwidthLimits",
    "BreakerState",
    "ChunkServer",
    "Exchange",
    "ExchangeSettings",
    "Kept",
    "KeyValue",
    "Lane",
    "PeerInfo",
    "PeerStats",
    "PeerStatsTable",
    "Pipe",
    "Reason",
    "Receipt",
    "ServerCounts",
    "ServerLimits",
    "Traffic",
    "open_exchange",
    "open_traffic",
    "serve",
]
