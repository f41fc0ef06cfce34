"""Implementations of `Host`: real sockets, memory, and the membership gate in front of either.

This room knows peers, addresses, connections and streams. It must not know what the streams carry
(chunks, records), nor where anything is stored. Hosts bring cryptography or zeroconf with them, so
they are imported from where they are: `libp2p_host.open_libp2p_host`, `member.open_member_host`,
`sim.open_sim_network`, `mdns.open_mdns`.
"""

from .limits import HostLimits
from .streams import BufferedStream, StreamPool, open_stream_pool

__all__ = ["BufferedStream", "HostLimits", "StreamPool", "open_stream_pool"]
