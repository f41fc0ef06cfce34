"""Standard input as bytes, read where a command can be ended at any moment."""

from __future__ import annotations

import os
import select
import sys

from ..errors import InputError


class StandardInput:
    """Reads the descriptor itself.

    Not `sys.stdin.buffer`: a thread that waits in it holds its lock, and an interpreter that ends
    meanwhile aborts because it cannot have that lock.
    """

    def __init__(self) -> None:
        """
        Raises:
            InputError: there is none.
        """
        try:
            self._descriptor = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError) as error:
            raise InputError(
                "There is no standard input to put: it is closed.",
                hint="Give it something to read, as in `producer | meshnode put -`.",
            ) from error

    def read(self, size: int, /) -> bytes:
        """What is there now, up to `size` bytes; waits for some; b"" only at the end."""
        while True:
            try:
                return os.read(self._descriptor, size)
            except BlockingIOError:
                select.select([self._descriptor], [], [])
            except OSError as error:
                raise InputError(
                    f"Standard input cannot be read: {error.strerror or error}.",
                    hint="To put a file or a folder, name it instead of -.",
                ) from error
