"""How errors leave a nursery: as the one error they are, not wrapped in a group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio

from ...errors import MeshError


@asynccontextmanager
async def task_group() -> AsyncIterator[trio.Nursery]:
    """A nursery out of which a single error comes bare, and the first of several `MeshError`s.

    Trio wraps whatever ends a nursery in an exception group, which no caller of a transfer expects
    to catch. Several errors of which one is a fault of ours leave as the group they are.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        every = list(_leaves(group))
        # A cancellation beside a real error is only its echo.
        errors = [e for e in every if not isinstance(e, trio.Cancelled)] or every[:1]
        if len(errors) > 1 and not all(isinstance(error, MeshError) for error in errors):
            raise
        raise errors[0] from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def reason_of(error: MeshError) -> str:
    """An error as part of a list of reasons: without its hint, without the final stop."""
    return error.message.rstrip(".")
