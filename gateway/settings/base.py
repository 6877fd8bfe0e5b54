"""What every section of the configuration shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

NAME_PATTERN = r"^[A-Za-z0-9._/-]+$"
FRAMING = frozenset({"connection", "content-length", "expect", "transfer-encoding", "upgrade"})
"""Headers that say where a request ends and what follows it: whoever writes the request sets them."""


def _header(name: str) -> str:
    if name.lower() in FRAMING:
        raise ValueError("is a header that the gateway sets itself")
    return name


def _one_line(secret: SecretStr) -> SecretStr:
    """Keys that come from files easily end with a line break; at either end, spaces are no part of a header's value."""
    value = secret.get_secret_value()
    if not value.isprintable():
        raise ValueError("holds a line break or another control character")
    if value != value.strip():
        raise ValueError("begins or ends with a space")
    return secret


Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=128)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]
HeaderValue = Annotated[SecretStr, AfterValidator(_one_line)]
Headers = dict[Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"), AfterValidator(_header)], HeaderValue]


class Strict(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
