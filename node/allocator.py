"""Keeping the C allocator from holding on to the memory of buffers that are gone.

A node moves megabyte buffers through several threads. glibc gives every thread an arena of its own
and keeps what was freed there; measured over three puts of 250 MB that grew a node from 110 to
250 MB, none of it in use. Few arenas, and trimming when a transfer has ended, keep it small.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

_M_ARENA_MAX = -8
_ARENAS = 2


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None


_LIBC = _glibc()


def use_few_arenas() -> None:
    """Call once, before threads are started. Does nothing where the allocator is not glibc's."""
    if _LIBC is not None:
        _LIBC.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give free memory back to the system; takes milliseconds. Call it in a worker thread."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)
