"""Membership proof, protocol `/meshnode/hello/1`: two peers show each other that they know the
secret of the same mesh. Bytes in, bytes out; the caller moves them and sets the deadline.

Participants: the initiator, who dialled, and the responder. The channel below has proved both peer
ids already. Goals: both sides know that the other is a member; a stranger learns yes or no and
nothing else, neither about the members nor to guess the secret with; nothing recorded can be used
again, with another peer, in the other direction, or in another mesh. Non-goals: secrecy of the
mesh's id from peers we dial, and keeping out a member who was one once (the secret is for good).

    1  initiator -> responder   [1, mesh id, nonce, sealed info]
    2  responder -> initiator   [1, mesh id, nonce, sealed info, proof]
    3  initiator -> responder   [1, proof]
    4  responder -> initiator   [1, true]

In place of 2 or 4 the responder may say `REFUSAL`, always the same bytes. Each is one msgpack
array of at most `MAX_MESSAGE_BYTES`; the caller frames them.

- proof: BLAKE3 keyed with the membership key over the length-prefixed transcript: domain, role of
  the prover, both peer ids, mesh id, both nonces, both sealed infos. Nonces are 32 random bytes.
- sealed info: AES-256-GCM under a key made from the membership key, the sender's role and nonce,
  both peer ids and the mesh id. A key meets one message, so its nonce is zero. The responder cannot
  open the info of a stranger and refuses before it has said anything.

In an open mesh the membership key comes from the mesh id (see mesh.py), and so the same exchange
proves only that both sides mean the same mesh.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...config.addresses import MAX_ADDRESS_CHARS
from ...dht.peer_id import PeerId
from ...errors import FormatError, MembershipError
from .mesh import MESH_ID_BYTES, Mesh
from .strict_msgpack import Plain, pack, unpack

PROTOCOL = "/meshnode/hello/1"
MAX_MESSAGE_BYTES = 4096
MAX_ADDRESSES = 8
MAX_TEXT_CHARS = 64

_VERSION = 1
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_MAX_INFO_BYTES = 3584  # what the other fields of a message leave, with room to spare
_PROOF_DOMAIN = b"meshnode hello 1 proof"
_INFO_DOMAIN = b"meshnode hello 1 info"

REFUSAL = pack([_VERSION, False])
"""What a responder sends to whomever it refuses, for whatever reason."""
_ACCEPTANCE = pack([_VERSION, True])


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """What members tell each other when they meet. From a peer: checked, but only its word."""

    name: str
    zone: str
    software: str
    """Such as `meshnode/0.1.0`."""
    addresses: tuple[str, ...] = ()
    """Multiaddrs it listens on, without `/p2p/`; of our own, the first `MAX_ADDRESSES` are told."""

    def __post_init__(self) -> None:
        texts = (self.name, self.zone, self.software)
        if not all(0 < len(text) <= MAX_TEXT_CHARS and text.isprintable() for text in texts):
            allowed = f"1 to {MAX_TEXT_CHARS} printable characters"
            raise FormatError(f"Name, zone and software of a member have {allowed}.")


class _Role(Enum):
    INITIATOR = b"initiator"
    RESPONDER = b"responder"


_Step = Literal["hello", "answer", "proof", "verdict", "done", "failed"]


@dataclass(frozen=True, slots=True)
class _Hello:
    nonce: bytes
    sealed: bytes


class _Side:
    """What both sides share: the keys, the order of steps, the proofs."""

    def __init__(
        self, mesh: Mesh, role: _Role, local: PeerId, remote: PeerId, info: MemberInfo
    ) -> None:
        self._mesh_id = mesh.id
        self._key = mesh.membership_key
        self._role = role
        self._remote = remote
        ends = (local, remote) if role is _Role.INITIATOR else (remote, local)
        self._ends = [bytes(end) for end in ends]
        self._remote_role = _Role.RESPONDER if role is _Role.INITIATOR else _Role.INITIATOR
        nonce = os.urandom(_NONCE_BYTES)
        self._mine = _Hello(nonce, self._seal(nonce, _encode_info(info)))
        self._theirs: _Hello | None = None
        self._info: MemberInfo | None = None
        self._due: _Step = "hello"

    @property
    def remote_info(self) -> MemberInfo:
        """What the proven member told about itself; only once the proof is complete."""
        if self._due != "done" or self._info is None:
            raise RuntimeError("the peer has not proved its membership")
        return self._info

    def _enter(self, step: _Step) -> None:
        # Each step happens once, in its turn. One that raises is never left: nothing follows it.
        if self._due != step:
            raise RuntimeError(f"the handshake step due is {self._due}, not {step}")
        self._due = "failed"

    def _fields(self, message: bytes) -> list[Plain]:
        """What follows the version in `message`."""
        what = f"A hello message of peer {self._remote}"
        match unpack(message, max_bytes=MAX_MESSAGE_BYTES, what=what):
            case [int(version), *fields] if version == _VERSION and version is not True:
                return fields
        raise FormatError(f"{what} is not of version {_VERSION}.")

    def _my_hello(self) -> list[Plain]:
        return [_VERSION, self._mesh_id, self._mine.nonce, self._mine.sealed]

    def _meet(self, fields: list[Plain]) -> None:
        """Take the peer's mesh id, nonce and info, and open the info.

        Raises:
            FormatError: not of these types and sizes.
            MembershipError: another mesh, or no member. Our own words sent back count as such: they
            are sealed for the other role.
        """
        match fields:
            case [bytes(mesh_id), bytes(nonce), bytes(sealed)]:
                sizes = len(mesh_id) == MESH_ID_BYTES and len(nonce) == _NONCE_BYTES
            case _:
                sizes = False
        if not sizes:
            raise FormatError(f"Peer {self._remote} sent a malformed hello.")
        same_mesh = hmac.compare_digest(mesh_id, self._mesh_id)
        opened = self._open(nonce, sealed)
        if not same_mesh or opened is None:
            raise self._stranger("is in another mesh" if not same_mesh else "knows no mesh secret")
        self._theirs = _Hello(nonce, sealed)
        self._info = _decode_info(opened, self._remote)

    def _proof(self, role: _Role) -> bytes:
        assert self._theirs is not None
        first, second = self._mine, self._theirs
        if self._role is _Role.RESPONDER:
            first, second = second, first
        return self._keyed(
            _PROOF_DOMAIN,
            role.value,
            *self._ends,
            self._mesh_id,
            first.nonce,
            second.nonce,
            first.sealed,
            second.sealed,
        )

    def _check_proof(self, proof: Plain) -> None:
        if not isinstance(proof, bytes) or len(proof) != _PROOF_BYTES:
            raise FormatError(f"Peer {self._remote} sent a malformed proof.")
        if not hmac.compare_digest(proof, self._proof(self._remote_role)):
            raise self._stranger("gave a wrong proof of membership")

    def _keyed(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return blake3(framed, key=self._key).digest()

    def _info_cipher(self, role: _Role, nonce: bytes) -> AESGCM:
        key = self._keyed(_INFO_DOMAIN, role.value, *self._ends, self._mesh_id, nonce)
        return AESGCM(key)

    def _seal(self, nonce: bytes, info: bytes) -> bytes:
        return self._info_cipher(self._role, nonce).encrypt(bytes(12), info, None)

    def _open(self, nonce: bytes, sealed: bytes) -> bytes | None:
        try:
            return self._info_cipher(self._remote_role, nonce).decrypt(bytes(12), sealed, None)
        except InvalidTag:
            return None

    def _stranger(self, why: str) -> MembershipError:
        return MembershipError(f"Peer {self._remote} is not a member of this mesh: it {why}.")


class Initiator(_Side):
    """The side that dialled: `hello`, then `receive_answer`, then `receive_verdict`."""

    def __init__(self, mesh: Mesh, local: PeerId, remote: PeerId, info: MemberInfo) -> None:
        super().__init__(mesh, _Role.INITIATOR, local, remote, info)

    def hello(self) -> bytes:
        """Message 1."""
        self._enter("hello")
        self._due = "answer"
        return pack(self._my_hello())

    def receive_answer(self, message: bytes) -> bytes:
        """Take message 2, give message 3.

        Raises:
            MembershipError: the responder is no member, or says that we are none.
            FormatError: the message is nonsense.
        """
        self._enter("answer")
        self._heed_refusal(message)
        *hello, proof = self._fields(message) or [None]
        self._meet(hello)
        self._check_proof(proof)
        self._due = "verdict"
        return pack([_VERSION, self._proof(_Role.INITIATOR)])

    def receive_verdict(self, message: bytes) -> MemberInfo:
        """Take message 4; the responder as it told about itself. Raises like `receive_answer`."""
        self._enter("verdict")
        self._heed_refusal(message)
        if message != _ACCEPTANCE:
            raise FormatError(f"Peer {self._remote} sent a malformed verdict.")
        self._due = "done"
        return self.remote_info

    def _heed_refusal(self, message: bytes) -> None:
        if message == REFUSAL:
            raise MembershipError(
                f"Peer {self._remote} refused us: it is not in the mesh this node belongs to.",
                hint="Compare the mesh that `meshnode status` shows on both nodes.",
            )


class Responder(_Side):
    """The side that was dialled: `receive_hello`, then `receive_proof`.

    When either raises, send `REFUSAL` and close: a stranger must not tell one reason from another.
    """

    def __init__(self, mesh: Mesh, local: PeerId, remote: PeerId, info: MemberInfo) -> None:
        super().__init__(mesh, _Role.RESPONDER, local, remote, info)

    def receive_hello(self, message: bytes) -> bytes:
        """Take message 1, give message 2.

        Raises:
            MembershipError: the initiator is no member.
            FormatError: the message is nonsense.
        """
        self._enter("hello")
        self._meet(self._fields(message))
        self._due = "proof"
        return pack([*self._my_hello(), self._proof(_Role.RESPONDER)])

    def receive_proof(self, message: bytes) -> bytes:
        """Take message 3, give message 4; from here on `remote_info` may be read.

        Raises like `receive_hello`.
        """
        self._enter("proof")
        fields = self._fields(message)
        if len(fields) != 1:
            raise FormatError(f"Peer {self._remote} sent a malformed proof.")
        self._check_proof(fields[0])
        self._due = "done"
        return _ACCEPTANCE


def _encode_info(info: MemberInfo) -> bytes:
    usable = [text for text in info.addresses if _is_address(text)]
    told: dict[str, Plain] = {
        "name": info.name,
        "zone": info.zone,
        "software": info.software,
        "addresses": list(usable[:MAX_ADDRESSES]),
    }
    return pack(told)


def _decode_info(data: bytes, peer: PeerId) -> MemberInfo:
    # Unknown keys are passed over: a later version may tell more.
    match unpack(data, max_bytes=_MAX_INFO_BYTES, what=f"The member info of peer {peer}"):
        case {
            "name": str(name),
            "zone": str(zone),
            "software": str(software),
            "addresses": list(addresses),
        } if len(addresses) <= MAX_ADDRESSES:
            texts = tuple(text for text in addresses if isinstance(text, str) and _is_address(text))
            if len(texts) == len(addresses):
                return MemberInfo(name, zone, software, texts)
    raise FormatError(f"Peer {peer} sent malformed member info.")


def _is_address(text: str) -> bool:
    return len(text) <= MAX_ADDRESS_CHARS and text.isascii() and text.isprintable()
