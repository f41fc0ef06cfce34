"""Who a node is and where it belongs: its key, its mesh, invitations, the proof of membership.

Pure code and small files; no network. This room knows `PeerId` and how files are kept safe, and
must not know the network library, the store, or what is done with the secrets it derives.
"""

from .handshake import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    REFUSAL,
    Initiator,
    MemberInfo,
    Responder,
)
from .identity import Identity, verify
from .invitation import Invitation
from .mesh import Mesh

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PROTOCOL",
    "REFUSAL",
    "Identity",
    "Initiator",
    "Invitation",
    "MemberInfo",
    "Mesh",
    "Responder",
    "verify",
]
