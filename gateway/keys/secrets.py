"""Making keys and reading them apart.

Why plain SHA-256 and no slow, salted hash: those make guessing *passwords* costly, which are few and alike. A secret here is 256
bits from the operating system's generator; there is no list to try, two keys never share one, and nobody guesses 2^256. A slow hash
would only cost every request a tenth of a second of processor time.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

PREFIX = "mnk"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # nothing that is taken for something else when read out
_ID_LENGTH = 12
_FORM = re.compile(rf"{PREFIX}_([a-z0-9]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True)
class NewKey:
    """text: the whole key, to be shown once and never kept."""

    id: str
    text: str
    digest: bytes


def make_key() -> NewKey:
    """A new key: a random id of 60 bits and a secret of 256."""
    id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
    text = f"{PREFIX}_{id}_{secrets.token_urlsafe(32)}"
    return NewKey(id, text, digest(text))


def id_of(text: str) -> str | None:
    """The public id inside a key of the gateway's own form, None for any other text."""
    found = _FORM.fullmatch(text)
    return found[1] if found else None


def digest(text: str) -> bytes:
    """SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
