"""A `MeshError` as the JSON object the API sends, and back.

{"code", "message", "hint", "exit_code", "http_status"}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ... import errors
from ...errors import MeshError

_MAX_TEXT_CHARS = 20_000
_BUG_HINT = "This is a fault of meshnode; the log of the node has the details."


def error_to_json(error: MeshError) -> dict[str, object]:
    """The object that stands for `error` under the key "error"."""
    return {
        "code": error.code,
        "message": error.message[:_MAX_TEXT_CHARS],
        "hint": error.hint[:_MAX_TEXT_CHARS],
        "exit_code": error.exit_code,
        "http_status": error.http_status,
    }


def error_from_json(found: object) -> MeshError:
    """The error an API answer stands for; one that makes no sense becomes a plain `MeshError`."""
    if not isinstance(found, Mapping):
        return MeshError("The node answered with an error that says nothing.")
    message = str(found.get("message") or "The node failed without saying why.")
    hint = str(found.get("hint") or "")
    kind = _BY_CODE.get(str(found.get("code"))) or _BY_EXIT_CODE.get(found.get("exit_code"))
    return (kind or MeshError)(message, hint=hint)


def as_mesh_error(error: BaseException) -> MeshError | None:
    """The one error to tell the user about, also out of a nursery's group; None: it is a bug."""
    if isinstance(error, MeshError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [as_mesh_error(inner) for inner in error.exceptions]
        if found and all(found):
            return found[0]
    return None


def internal_error(error: BaseException) -> MeshError:
    """What a client is told about a bug: its kind, not its inside."""
    return MeshError(f"The node failed in an unforeseen way ({_kind(error)}).", hint=_BUG_HINT)


def _kind(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__


def _classes(root: type[MeshError]) -> Iterator[type[MeshError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


# An error whose constructor wants more than a message comes back as its parent class.
_BY_CODE = {
    kind.code: kind
    for kind in _classes(MeshError)
    if kind.__init__ is MeshError.__init__ and kind.__module__ == errors.__name__
}
_BY_EXIT_CODE: dict[object, type[MeshError]] = {
    errors.EXIT_USAGE: errors.UsageError,
    errors.EXIT_PARTIAL: errors.PartialError,
    errors.EXIT_NOT_FOUND: errors.NotFoundError,
    errors.EXIT_REFUSED: errors.RefusedError,
    errors.EXIT_TIMEOUT: errors.DeadlineError,
}
