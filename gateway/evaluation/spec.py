"""What a run is: its question sets, its paths, and the settings that every request carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.evaluation.errors import SpecError
from gateway.evaluation.sources import Task
from strategies.evaluation.paths import STRUCTURES, Path, path_of, paths
from strategies.topology import TopologyError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What an answer depends on besides question and wiring; all of it is part of a question's key.

    max_tokens: of the answer; stage_max_tokens: of every stage before; None leaves it to the gateway. prompts: name of the prompt set.
    judge: wiring that judges answers of the kind `judge`.
    """

    max_tokens: int = 400
    stage_max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    prompts: str = "paper"
    judge: str | None = None

    def value(self) -> dict[str, Any]:
        """For keys and files."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spec:
    """paths: mirrors included. mirrored: questions per task for which mirrors are asked too, to check that they are."""

    tasks: tuple[Task, ...]
    paths: tuple[Path, ...]
    settings: Settings
    models: tuple[str, ...] = ()
    mirrored: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wirings(self) -> tuple[str, ...]:
        """What is asked, mirrors apart."""
        return tuple(dict.fromkeys(path.wiring for path in self.paths if path.twin is None))

    @property
    def mirrors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path.wiring for path in self.paths if path.twin is not None))

    def digest(self) -> str:
        """Of everything but the questions, so that a run can grow."""
        what = [[t.name for t in self.tasks], list(self.wirings), self.settings.value()]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def make_paths(models: Sequence[str], structures: Sequence[str], wirings: Sequence[str]) -> tuple[Path, ...]:
    """The paper's paths over `models`, and explicit wirings. Raises SpecError, TopologyError."""
    found: list[Path] = []
    unknown = [name for name in structures if name not in STRUCTURES]
    if unknown:
        raise SpecError(f"no structure {unknown[0]!r}: there are {', '.join(STRUCTURES)}")
    if models:
        wanted = [s for s in STRUCTURES if s in structures]
        try:
            # A pair has no room for a lead and a group: what two models can't form is left out, not refused.
            found += paths(models, [s for s in wanted if len(models) >= {"single": 1, "si": 2, "pi": 2}.get(s, 3)])
        except ValueError as error:
            raise SpecError(str(error)) from error
    known = {path.wiring for path in found}
    for wiring in wirings:
        path = path_of(wiring)
        if path.wiring not in known:
            known.add(path.wiring)
            found.append(path)
    if not found:
        raise SpecError("nothing to ask: name models (--models a,b,c) or wirings (--wiring 'a>b')")
    # A mirror whose twin is not asked stands for itself.
    return tuple(path if path.twin in known else Path(path.wiring, path.structure, path.order) for path in found)


__all__ = ["FORMAT", "Settings", "Spec", "SpecError", "TopologyError", "make_paths"]
