"""What every section of the configuration shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9._/-]+$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=128)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
