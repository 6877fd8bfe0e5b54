"""What a running plan reports, in order of time.

Per stage: one `StageStarted`, any number of `Delta`, one `StageFinished`. Stages that do not depend on each other
interleave. The last stage's `Delta`s are the answer. After its `StageFinished` comes one `Finished`, then nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.types import Usage
from strategies.fusion.meters import Meters


@dataclass(frozen=True, slots=True)
class BranchReport:
    """What one model spent in a stage."""

    model: str
    role: str
    usage: Usage
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class StageReport:
    """A finished stage. seconds: from its start to its last token; first_token: to its first (None if it wrote nothing)."""

    stage: int
    branches: tuple[BranchReport, ...]
    seconds: float
    first_token: float | None
    finish_reason: str
    meters: Meters | None = None

    @property
    def usage(self) -> Usage:
        return sum((b.usage for b in self.branches), Usage())


@dataclass(frozen=True, slots=True)
class StageStarted:
    """`stage` is the index in `Plan.stages`."""

    stage: int


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of a stage. `reasoning`: text that the model's server itself marked as reasoning."""

    stage: int
    text: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage has written its last."""

    report: StageReport


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `usage` adds up all stages and members."""

    finish_reason: str
    usage: Usage
    stages: tuple[StageReport, ...]


Event = StageStarted | Delta | StageFinished | Finished
