"""Links: `meshnode:<cid>#<key>`, or `meshnode:<cid>` for public content.

A link with a key is a read capability: who has it can read. Without the key it still names the
content well enough to verify, pin and repair it.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Final

from ...errors import LinkError
from .cid import decode_cid, encode_cid
from .limits import DIGEST_BYTES, KEY_BYTES, Digest

SCHEME: Final = "meshnode:"
_KEY_CHARS: Final = 43  # 32 bytes in base64 without padding
_NOT_BASE64URL: Final = re.compile(r"[^A-Za-z0-9_-]")
_HINT: Final = "Copy the whole link, from 'meshnode:' to its end, and quote it in a shell."


@dataclass(frozen=True, slots=True)
class Link:
    """The digest of a manifest's root and the key that opens it (None: public content).

    `str()` gives the link with its key; `repr()` hides the key, so that logs do not grant access.
    """

    digest: Digest
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(self.digest)}")
        if self.key is not None and len(self.key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(self.key)}")

    def __str__(self) -> str:
        if self.key is None:
            return SCHEME + self.cid
        return f"{SCHEME}{self.cid}#{_encode_key(self.key)}"

    def __repr__(self) -> str:
        return f"Link({SCHEME}{self.cid}{'' if self.key is None else '#<key hidden>'})"

    @property
    def cid(self) -> str:
        """The public half: names the content, opens nothing."""
        return encode_cid(self.digest)

    @classmethod
    def parse(cls, text: str) -> Link:
        """Parse a link; white space around it is forgiven, nothing else is.

        Raises:
            LinkError: says which part is wrong. The message never shows the key.
        """
        text = text.strip()
        if not text.startswith(SCHEME):
            shown = text.partition("#")[0][:12]  # a key on its own must not be shown whole
            raise LinkError(
                f"{shown!r} is not a link: it does not begin with '{SCHEME}'.", hint=_HINT
            )
        cid, mark, key = text.removeprefix(SCHEME).partition("#")
        digest = decode_cid(cid)
        if not mark:
            return cls(digest)
        return cls(digest, _decode_key(key))


def _encode_key(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode("ascii").rstrip("=")


def _decode_key(text: str) -> bytes:
    if _NOT_BASE64URL.search(text):
        raise LinkError(
            "The link's key (the part after '#') has characters that no key has.", hint=_HINT
        )
    if len(text) != _KEY_CHARS:
        why = "is cut short" if len(text) < _KEY_CHARS else "is too long"
        raise LinkError(
            f"The link's key (the part after '#') {why}: "
            f"it has {len(text)} characters instead of {_KEY_CHARS}.",
            hint=_HINT,
        )
    key = base64.urlsafe_b64decode(text + "=")
    if _encode_key(key) != text:
        raise LinkError("The link's key is mistyped: its last character is impossible.", hint=_HINT)
    return key
