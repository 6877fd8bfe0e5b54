"""Records → the numbers of a report: per task and wiring, per structure, and the spread over paths.

Shares are of the questions that were answered; failures (the gateway or a model broke down) are counted apart, and so are answers
in which no answer was found, which do count as not right.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from strategies.evaluation.paths import Path
from strategies.evaluation.records import Record, StageRecord
from strategies.evaluation.statistics import wilson

ALL = "all tasks"
"""Stands for the mean over tasks, every task weighing the same."""


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens, in whatever currency."""

    prompt: float
    completion: float


@dataclass(slots=True)
class Grid:
    """Records by task, wiring and question. questions: task → ids, in the order in which they were asked of everybody."""

    tasks: tuple[str, ...]
    paths: tuple[Path, ...]
    questions: Mapping[str, tuple[str, ...]]
    records: dict[tuple[str, str, str], Record] = field(default_factory=dict)

    @property
    def wirings(self) -> tuple[str, ...]:
        """Every wiring that is asked: no mirrors."""
        return tuple(dict.fromkeys(path.wiring for path in self.paths if path.twin is None))

    def structure(self, wiring: str) -> str:
        return next((path.structure for path in self.paths if path.wiring == wiring), "mixed")

    def answered(self, task: str, wiring: str) -> list[Record]:
        """Without failures, in the order of the questions."""
        found = (self.records.get((task, wiring, question)) for question in self.questions[task])
        return [record for record in found if record is not None and record.error is None]

    def common(self, wirings: Sequence[str], tasks: Iterable[str] | None = None) -> list[tuple[str, str]]:
        """(task, question) that all of these wirings have answered."""
        return [
            (task, question)
            for task in (self.tasks if tasks is None else tasks)
            for question in self.questions[task]
            if all(self._is_answered(task, wiring, question) for wiring in wirings)
        ]

    def right(self, wirings: Sequence[str], tasks: Iterable[str] | None = None) -> NDArray[np.bool_]:
        """[common questions, wirings]."""
        rows = self.common(wirings, tasks)
        table = [[self.records[task, wiring, question].right for wiring in wirings] for task, question in rows]
        return np.asarray(table, dtype=np.bool_).reshape(len(rows), len(wirings))

    def _is_answered(self, task: str, wiring: str, question: str) -> bool:
        record = self.records.get((task, wiring, question))
        return record is not None and record.error is None


def grid_of(records: Iterable[Record], paths: Sequence[Path], questions: Mapping[str, Sequence[str]]) -> Grid:
    """Records of other tasks, wirings or questions are left out."""
    grid = Grid(tuple(questions), tuple(paths), {task: tuple(ids) for task, ids in questions.items()})
    wanted = {(task, question) for task, ids in questions.items() for question in ids}
    wirings = {path.wiring for path in paths}
    for record in records:
        if (record.task, record.question) in wanted and record.wiring in wirings:
            grid.records[record.task, record.wiring, record.question] = record
    return grid


@dataclass(frozen=True, slots=True)
class Cell:
    """One wiring on one task. asked: all questions of the task. seconds, first_token, tokens: means per answered question.

    none: answers in which no answer was found; cut: those that ended for want of tokens; low, high: 95 % (Wilson).
    missing: not asked yet. cost: per question, None without prices.
    """

    task: str
    wiring: str
    structure: str
    asked: int
    answered: int
    right: int
    none: int
    cut: int
    failed: int
    missing: int
    share: float
    low: float
    high: float
    seconds: float
    seconds_sd: float
    seconds_median: float
    first_token: float
    prompt_tokens: float
    completion_tokens: float
    cost: float | None = None


def cells(grid: Grid, prices: Mapping[str, Price] | None = None) -> list[Cell]:
    """Task by task, in the order of the wirings. Mirrors that were asked (to check the symmetry) are not among them."""
    return [_cell(grid, task, wiring, prices or {}) for task in grid.tasks for wiring in grid.wirings]


def _cell(grid: Grid, task: str, wiring: str, prices: Mapping[str, Price]) -> Cell:
    found = grid.answered(task, wiring)
    failed = sum(
        1
        for q in grid.questions[task]
        if (r := grid.records.get((task, wiring, q))) is not None and r.error is not None
    )
    asked, right = len(grid.questions[task]), sum(record.right for record in found)
    low, high = wilson(right, len(found))
    seconds = [record.seconds for record in found]
    firsts = [record.first_token for record in found if record.first_token is not None]
    costs = [cost_of(record, prices) for record in found]
    known = [cost for cost in costs if cost is not None]
    return Cell(
        task, wiring, grid.structure(wiring), asked, len(found), right,
        none=sum(record.given is None for record in found),
        cut=sum(record.finish_reason == "length" for record in found),
        failed=failed,
        missing=asked - len(found) - failed,
        share=right / len(found) if found else math.nan,
        low=low, high=high,
        seconds=mean(seconds),
        seconds_sd=statistics.stdev(seconds) if len(seconds) > 1 else math.nan,
        seconds_median=statistics.median(seconds) if seconds else math.nan,
        first_token=mean(firsts),
        prompt_tokens=mean([record.prompt_tokens for record in found]),
        completion_tokens=mean([record.completion_tokens for record in found]),
        cost=mean(known) if known and len(known) == len(costs) else None,
    )  # fmt: skip


def cost_of(record: Record, prices: Mapping[str, Price]) -> float | None:
    """What an answer's tokens cost; None if a model of it has no price."""
    return cost_of_stages(record.stages, prices)


def cost_of_stages(stages: Sequence[StageRecord], prices: Mapping[str, Price]) -> float | None:
    """As `cost_of`."""
    total = 0.0
    for stage in stages:
        for model, (read, wrote) in stage.tokens.items():
            if (price := prices.get(model)) is None:
                return None
            total += (read * price.prompt + wrote * price.completion) / 1e6
    return total if prices and stages else None


@dataclass(frozen=True, slots=True)
class StructureRow:
    """A structure on one task, or on all: over its paths, every order counted as the source experiment does.

    sd: of a sample, over the paths; nan of a single one. best: the path that was right most often; held_out: what the path
    that is best on one half of the questions gets on the other half, mean of many splits: the best path of a table is partly lucky.
    """

    task: str
    structure: str
    paths: int
    distinct: int
    mean: float
    sd: float
    best: str
    best_share: float
    held_out: float
    seconds: float
    seconds_sd: float
    best_seconds: float


def structure_rows(grid: Grid, found: Sequence[Cell], seed: int = 0) -> list[StructureRow]:
    """Task by task, then over all tasks. Only structures and paths with answers."""
    by = {(cell.task, cell.wiring): cell for cell in found if cell.answered}
    rows = []
    for task in (*grid.tasks, ALL):
        tasks = grid.tasks if task == ALL else (task,)
        for structure in dict.fromkeys(path.structure for path in grid.paths):
            asked = [
                wiring
                for path in grid.paths
                if path.structure == structure and all((t, (wiring := path.twin or path.wiring)) in by for t in tasks)
            ]
            if asked:
                rows.append(_structure(grid, task, tasks, structure, asked, by, seed))
    return rows


def _structure(
    grid: Grid, task: str, tasks: Sequence[str], structure: str, asked: Sequence[str],
    by: Mapping[tuple[str, str], Cell], seed: int,
) -> StructureRow:  # fmt: skip
    shares = {wiring: mean([by[t, wiring].share for t in tasks]) for wiring in asked}
    times = {wiring: mean([by[t, wiring].seconds for t in tasks]) for wiring in asked}
    best = max(shares, key=lambda wiring: (shares[wiring], -times[wiring]))
    return StructureRow(
        task, structure, len(asked), len(shares),
        mean=mean([shares[wiring] for wiring in asked]),
        sd=sd([shares[wiring] for wiring in asked]),
        best=best, best_share=shares[best],
        held_out=held_out(grid.right(list(shares), tasks), _weights(grid.common(list(shares), tasks)), seed),
        seconds=mean([times[wiring] for wiring in asked]),
        seconds_sd=sd([times[wiring] for wiring in asked]),
        best_seconds=times[best],
    )  # fmt: skip


def _weights(rows: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Of every question, so that every task weighs the same, as it does in a mean over tasks."""
    counts = Counter(task for task, _ in rows)
    return np.asarray([1 / counts[task] for task, _ in rows], dtype=np.float64)


def held_out(
    right: NDArray[np.bool_], weights: NDArray[np.float64] | None = None, seed: int = 0, splits: int = 200
) -> float:
    """Choose the best column on a random half of the rows, look at it on the other half; mean over splits. nan of under 4 rows.

    weights: of the rows; all alike by default.
    """
    rows, columns = right.shape
    weights = np.ones(rows) if weights is None else weights
    if rows < 4:
        return math.nan
    if columns == 1:
        return float(np.average(right[:, 0], weights=weights))
    rng, found = np.random.default_rng(seed), []
    for _ in range(splits):
        order = rng.permutation(rows)
        chosen, rest = (
            np.average(right[half], axis=0, weights=weights[half]) for half in (order[: rows // 2], order[rows // 2 :])
        )
        best = np.flatnonzero(chosen == chosen.max())
        found.append(float(rest[best].mean()))  # ties share
    return mean(found)


def mean(values: Sequence[float]) -> float:
    """nan of nothing."""
    return sum(values) / len(values) if values else math.nan


def sd(values: Sequence[float]) -> float:
    """Standard deviation of a sample; nan of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else math.nan
