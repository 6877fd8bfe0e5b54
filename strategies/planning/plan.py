"""A plan: stages in an order in which they can run, each naming the earlier stage whose answer it reads.

The wiring's nesting is gone: a nested group is flattened into its outer one (a pool of linear pools is a linear pool, the
weights multiply), and a member chain's earlier stages are stages of the plan. The last stage writes the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from strategies.topology.ast import Shape, Topology

Role = Literal["solver", "reviewer", "verifier"]
"""solver: reads the question only. reviewer: reads an earlier answer and is not last. verifier: reads one and is last."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One model's place in a stage. `reads`: index of the stage whose answer it is handed, None for the question only."""

    model: str
    role: Role
    reads: int | None


@dataclass(frozen=True, slots=True)
class TextStage:
    """One model writes text by itself."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class FusedStage:
    """Two or more branches write one text together. `weights` are positive and add up to 1, one per branch.

    Branches are in canonical order (by model name, then by what they read): the order in which a group was written never
    shows in an answer. The same model reading the same thing twice is one branch with the sum of the weights.
    """

    branches: tuple[Branch, ...]
    weights: tuple[float, ...]


Stage = TextStage | FusedStage


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run. `stages[-1]` writes the answer; every `reads` points to an earlier stage."""

    topology: Topology
    shape: Shape
    stages: tuple[Stage, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that takes part, without repetition, in the order of first appearance."""
        return tuple(dict.fromkeys(branch.model for stage in self.stages for branch in branches(stage)))


def branches(stage: Stage) -> tuple[Branch, ...]:
    """The models' places in a stage, one for a text stage."""
    return (stage.branch,) if isinstance(stage, TextStage) else stage.branches
