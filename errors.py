"""The one error hierarchy of meshnode.

Every error that reaches a user is a `MeshError`: it says what happened and why (`message`), what to
do next (`hint`), and how a program should read it (`code`, `exit_code`, `http_status`). The classes
differ in what the caller can do about them, not in where they were raised.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_NOT_FOUND = 4
EXIT_REFUSED = 5
EXIT_TIMEOUT = 6
EXIT_INTERRUPTED = 130


class MeshError(Exception):
    """Root of all errors meshnode raises on purpose.

    Args:
        message: what failed and why, naming the thing (path, key, peer) it is about.
        hint: the next step for the user, one sentence; empty when there is none.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILED
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


# --- what the user can mend -------------------------------------------------------------------


class UsageError(MeshError):
    """The request makes no sense as given: mend the command or the call."""

    code, exit_code, http_status = "usage", EXIT_USAGE, 400


class ConfigError(UsageError):
    """A configuration file or value is wrong: names file, key, what was found, what is allowed."""

    code = "config"


class LinkError(UsageError):
    """A link or token is malformed (mistyped, cut short, of a newer version)."""

    code = "link"


class InputError(MeshError):
    """A file to put cannot be read as a whole: missing, unreadable, changing, looping."""

    code, exit_code, http_status = "input", EXIT_FAILED, 400


class DestinationError(MeshError):
    """The place to write to cannot be used: exists already, not writable, not a folder."""

    code, exit_code, http_status = "destination", EXIT_FAILED, 409


# --- content ----------------------------------------------------------------------------------


class FormatError(MeshError):
    """Bytes from a peer, a disk or a user are not what their format demands."""

    code, http_status = "format", 422


class IntegrityError(FormatError):
    """Bytes do not match the digest that names them."""

    code = "integrity"


class WrongKeyError(FormatError):
    """Sealed bytes do not open with this key."""

    code = "wrong_key"


class NotFoundError(MeshError):
    """Nobody who answered has it. Trying again later can help."""

    code, exit_code, http_status = "not_found", EXIT_NOT_FOUND, 404


# --- this machine -----------------------------------------------------------------------------


class StoreError(MeshError):
    """The local store failed: disk error, corrupt database."""

    code = "store"


class StoreLockedError(StoreError):
    """Another process owns the data directory."""

    code, exit_code, http_status = "store_locked", EXIT_REFUSED, 409


class RefusedError(MeshError):
    """A limit or a rule says no; asking again changes nothing until the rule or the load does."""

    code, exit_code, http_status = "refused", EXIT_REFUSED, 403


class QuotaError(RefusedError):
    """No room: quota, minimum free disk, or the disk itself is full."""

    code, http_status = "quota", 507


class MembershipError(RefusedError):
    """Not a member: this node has no mesh, or the peer did not prove that it belongs to ours."""

    code = "membership"


# --- peers and time ---------------------------------------------------------------------------


class PeerError(MeshError):
    """One peer failed us: unreachable, reset, spoke nonsense. Another peer may do."""

    code, http_status = "peer", 502


class PeerRefusedError(PeerError):
    """A peer answered, and its answer is no; `reason` is its own stable word for why."""

    code = "peer_refused"

    def __init__(
        self, message: str, *, reason: str, retry_after: float | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.retry_after = retry_after


class DeadlineError(MeshError):
    """No progress within the deadline; the message says what was waited for."""

    code, exit_code, http_status = "timeout", EXIT_TIMEOUT, 504


class TransferError(MeshError):
    """A put or a get could not be completed; the message lists peers and reasons."""

    code, exit_code, http_status = "transfer", EXIT_FAILED, 502


class PartialError(TransferError):
    """Some of it is done and safe, some is not; the message says which."""

    code, exit_code = "partial", EXIT_PARTIAL


class WeakError(PartialError):
    """A put is durable on this node, but fewer copies than wanted were acknowledged.

    `link` is good; `report` (a `PutReport`) has the counts.
    """

    code = "weak"

    def __init__(self, message: str, *, link: object, report: object, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.link = link
        self.report = report


class ApiUnavailableError(MeshError):
    """No node answers on the API socket."""

    code = "api_unavailable"
