"""Implementations of `Host`: real sockets, memory, and the membership gate in front of either.

This room knows peers, addresses, connections and streams. It must not know what the streams carry
(chunks, records), nor where anything is stored. Only `libp2p_*.py` may import py-libp2p; nothing
here is imported before it is used, because that library takes most of a second to load.
"""
