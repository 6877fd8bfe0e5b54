"""A plan described for people, as plain values: what a terminal, a page or a log then draws."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.planning.plan import FusedStage, Plan, Role, branches
from strategies.topology import Shape
from strategies.topology import format as write


@dataclass(frozen=True, slots=True)
class BranchLine:
    """One model's place in a stage.

    percent: its weight in the stage, 0 to 100, None where it writes alone. reads: number of the stage whose answer it is handed,
    None for the question only.
    """

    model: str
    role: Role
    percent: float | None
    reads: int | None


@dataclass(frozen=True, slots=True)
class StageLine:
    """A stage. number: counted from 1. fuser: name of the fuser, None where one model writes alone. last: it writes the answer."""

    number: int
    fuser: str | None
    last: bool
    branches: tuple[BranchLine, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A whole plan. wiring: its canonical text, aliases expanded."""

    wiring: str
    shape: Shape
    stages: tuple[StageLine, ...]


def outline(plan: Plan, *, fuser: str) -> Outline:
    """Describe a plan whose fused stages use this fuser."""
    lines = []
    for index, stage in enumerate(plan.stages):
        fused = isinstance(stage, FusedStage)
        weights = stage.weights if isinstance(stage, FusedStage) else (None,)
        lines.append(
            StageLine(
                number=index + 1,
                fuser=fuser if fused else None,
                last=index == len(plan.stages) - 1,
                branches=tuple(
                    BranchLine(
                        branch.model,
                        branch.role,
                        None if weight is None else 100 * weight,
                        None if branch.reads is None else branch.reads + 1,
                    )
                    for branch, weight in zip(branches(stage), weights, strict=True)
                ),
            )
        )
    return Outline(write(plan.topology), plan.shape, tuple(lines))


def percentage(percent: float) -> str:
    """A percentage with one decimal, or with as many as show that it is not zero; whole ones without."""
    rounded = f"{percent:.1f}" if percent >= 0.05 else f"{percent:.2g}"
    return rounded.removesuffix(".0")
