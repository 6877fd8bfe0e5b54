"""Where a chain went wrong, or was put right.

Every stage's text is judged as if it were the answer. Between two stages that follow each other a right answer is *kept* or *lost*, a
wrong one *repaired* or left wrong. What is lost and repaired says what a later stage is good for; kept and wrong ones it just passes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from strategies.evaluation.records import Record, StageRecord


@dataclass(frozen=True, slots=True)
class Step:
    """From one stage of a wiring to the next, over many questions. stage: index of the later one; models: who writes it."""

    wiring: str
    stage: int
    models: tuple[str, ...]
    role: str
    kept: int = 0
    lost: int = 0
    repaired: int = 0
    wrong: int = 0

    @property
    def before(self) -> int:
        """Right answers handed over."""
        return self.kept + self.lost

    @property
    def gain(self) -> int:
        """Right answers more than were handed over."""
        return self.repaired - self.lost


@dataclass(frozen=True, slots=True)
class Course:
    """One answer's course. rights: stage by stage. first: the first stage that was right; lost: the stages that lost it."""

    rights: tuple[bool, ...]

    @property
    def first(self) -> int | None:
        return self.rights.index(True) if True in self.rights else None

    @property
    def lost(self) -> tuple[int, ...]:
        return tuple(i for i in range(1, len(self.rights)) if self.rights[i - 1] and not self.rights[i])

    @property
    def repaired(self) -> tuple[int, ...]:
        return tuple(i for i in range(1, len(self.rights)) if self.rights[i] and not self.rights[i - 1])

    @property
    def said(self) -> str:
        """In words."""
        if not self.rights:  # its server told no stages
            return ""
        if len(self.rights) < 2:
            return "right" if self.rights and self.rights[0] else "wrong"
        if all(self.rights):
            return "right all along"
        if self.first is None:
            return "never right"
        parts = [f"put right by stage {i + 1}" for i in self.repaired] + [f"lost by stage {i + 1}" for i in self.lost]
        return ", ".join(sorted(parts, key=lambda part: part[-1]))


def course(record: Record) -> Course:
    """Of an answer whose stages were kept; side-by-side stages count in the order of the plan."""
    return Course(tuple(stage.right for stage in record.stages))


def steps(records: Iterable[Record]) -> list[Step]:
    """Every step of every wiring with two or more stages, in the order of their first record. Answers that a model judged are left out:
    what their earlier stages came to nobody was asked."""
    counts: dict[tuple[str, int], list[int]] = {}
    later: dict[tuple[str, int], StageRecord] = {}
    for record in records:
        if record.error is None and record.kind != "judge":
            for before, stage in _pairs(record.stages):
                key = record.wiring, stage.stage
                later.setdefault(key, stage)
                place = 2 * (not before.right) + (stage.right is before.right if not before.right else not stage.right)
                counts.setdefault(key, [0, 0, 0, 0])[place] += 1
    return [
        Step(wiring, stage, later[wiring, stage].models, later[wiring, stage].roles[0], *found)
        for (wiring, stage), found in counts.items()
    ]


def _pairs(stages: Sequence[StageRecord]) -> Iterable[tuple[StageRecord, StageRecord]]:
    return pairwise(stages)


def by_writer(found: Iterable[Step]) -> list[Step]:
    """The steps added up over wirings, by who wrote the later stage and as what."""
    total: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for step in found:
        counts = total.setdefault((tuple(sorted(step.models)), step.role), [0, 0, 0, 0])
        for i, value in enumerate((step.kept, step.lost, step.repaired, step.wrong)):
            counts[i] += value
    return [Step("", 0, models, role, *counts) for (models, role), counts in total.items()]
