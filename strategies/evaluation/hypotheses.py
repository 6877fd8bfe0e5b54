"""The two hypotheses of the source experiment, put to the test on a run's own answers.

*Order sensitivity*: the order of the models in a chain matters, and a weak model early hurts what follows.
*Slowest branch*: a step of a group takes as long as its slowest member does alone. On one machine the members share its
processor; then the sum of the members is the other candidate, so both ratios are told.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.evaluation.paths import path_of
from strategies.evaluation.records import StageRecord
from strategies.evaluation.statistics import Cochran, Fit, bootstrap, cochran, proportional
from strategies.evaluation.summary import ALL, Grid

MIN_QUESTIONS = 10
"""Fewer are not resampled."""
MIN_TOKENS = 4
"""A text shorter than this says nothing about the time of one token."""


@dataclass(frozen=True, slots=True)
class OrderTest:
    """Whether the orders of one structure differ on one task (or all)."""

    task: str
    structure: str
    orders: int
    lowest: float
    highest: float
    test: Cochran


def order_tests(grid: Grid, seed: int = 0) -> list[OrderTest]:
    """For every structure with two or more different orders."""
    found = []
    structures = [s for s in dict.fromkeys(path.structure for path in grid.paths) if s not in ("single", "pi", "mixed")]
    for task in (*grid.tasks, *([ALL] if len(grid.tasks) > 1 else [])):
        tasks = grid.tasks if task == ALL else (task,)
        for structure in structures:
            wirings = [w for w in grid.wirings if grid.structure(w) == structure]
            right = grid.right(wirings, tasks)
            if len(wirings) > 1 and len(right):
                shares = right.mean(axis=0)
                found.append(
                    OrderTest(
                        task, structure, len(wirings), float(shares.min()), float(shares.max()), cochran(right, seed)
                    )
                )
    return found


@dataclass(frozen=True, slots=True)
class WeakEarly:
    """The weakest model's place in a structure. shares: place → mean share of the wirings where it stands there.

    difference: standing last minus standing first, per question, with its 95 % bootstrap interval; nan where there is none to be had.
    """

    structure: str
    model: str
    shares: tuple[tuple[int, float], ...]
    difference: float
    low: float
    high: float
    questions: int


def weak_early(grid: Grid, seed: int = 0) -> list[WeakEarly]:
    """Needs the single models among the wirings. Places are stages: a group's members stand in one place."""
    singles = [w for w in grid.wirings if grid.structure(w) == "single"]
    right = grid.right(singles)
    if len(singles) < 2 or not len(right):
        return []
    counts = right.sum(axis=0)
    if (counts == counts.min()).sum() > 1:
        return []  # nobody is weakest alone
    weakest = singles[int(counts.argmin())]
    found = []
    for structure in ("si", "s2p", "p2s"):
        wirings = [w for w in grid.wirings if grid.structure(w) == structure]
        places = {wiring: _place(wiring, weakest) for wiring in wirings}
        table = grid.right(wirings)
        used = sorted({place for place in places.values() if place is not None})
        if len(used) < 2 or not len(table):
            continue
        columns = {place: [i for i, wiring in enumerate(wirings) if places[wiring] == place] for place in used}
        per_question = {place: table[:, columns[place]].mean(axis=1) for place in used}
        gap = per_question[used[-1]] - per_question[used[0]]
        # Where every question says the same, or few are there to be drawn from, resampling knows no width.
        known = len(gap) >= MIN_QUESTIONS and bool((gap != gap[0]).any())
        low, high = bootstrap(gap, seed) if known else (math.nan, math.nan)
        shares = tuple((place, float(per_question[place].mean())) for place in used)
        found.append(WeakEarly(structure, weakest, shares, float(gap.mean()), low, high, len(gap)))
    return found


def _place(wiring: str, model: str) -> int | None:
    for place, stage in enumerate(wiring.split(">")):
        if model in path_of(stage).order:
            return place
    return None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one step of a group takes, beside its members. ms: median over answers. own_ms: the gateway's own work in it (aggregation),
    mean, where the API tells it."""

    members: tuple[str, ...]
    answers: int
    ms: float
    slowest: str
    slowest_ms: float
    sum_ms: float
    own_ms: float | None = None

    @property
    def waiting_ms(self) -> float | None:
        """The rest of a step: the members' forward passes, and the way there and back. What the API counts as waiting holds prompts too."""
        return None if self.own_ms is None else max(0.0, self.ms - self.own_ms)

    @property
    def to_slowest(self) -> float:
        return self.ms / self.slowest_ms if self.slowest_ms else math.nan

    @property
    def to_sum(self) -> float:
        return self.ms / self.sum_ms if self.sum_ms else math.nan


@dataclass(frozen=True, slots=True)
class SlowestBranch:
    """members: model → ms per token, where it writes alone. by_slowest, by_sum: step ≈ slope · (slowest member, sum of members)."""

    members: tuple[tuple[str, float], ...]
    groups: tuple[Pace, ...]
    by_slowest: Fit | None
    by_sum: Fit | None


def slowest_branch(grid: Grid, seed: int = 0) -> SlowestBranch:
    """Members' own pace is that of their stages with a single writer, in whatever wiring."""
    alone: dict[str, list[float]] = {}
    groups: dict[tuple[str, ...], list[StageRecord]] = {}
    for record in grid.records.values():
        for stage in record.stages if record.error is None else ():
            if (pace := pace_of(stage)) is None:
                continue
            if stage.fusion is None:
                alone.setdefault(stage.models[0], []).append(pace)
            else:
                groups.setdefault(tuple(sorted(stage.models)), []).append(stage)
    members = {model: 1e3 * statistics.median(found) for model, found in alone.items()}
    paces = [
        _group_pace(names, found, members) for names, found in groups.items() if all(name in members for name in names)
    ]
    known = [pace for pace in paces if pace.slowest_ms]
    steps = [pace.ms for pace in known]
    return SlowestBranch(
        tuple(sorted(members.items())),
        tuple(paces),
        proportional([pace.slowest_ms for pace in known], steps, seed),
        proportional([pace.sum_ms for pace in known], steps, seed),
    )


def pace_of(stage: StageRecord) -> float | None:
    """Seconds per token or piece after the first one; None of a text too short to tell."""
    written = (stage.fusion or {}).get("pieces") if stage.fusion is not None else None
    count = int(written) if written is not None else sum(wrote for _, wrote in stage.tokens.values())
    if stage.first_token is None or count < MIN_TOKENS:
        return None
    return max(0.0, stage.seconds - stage.first_token) / (count - 1)


def _group_pace(names: tuple[str, ...], found: Sequence[StageRecord], members: dict[str, float]) -> Pace:
    slowest = max(names, key=lambda name: members[name])
    paces = [pace for stage in found if (pace := pace_of(stage)) is not None]
    return Pace(
        names, len(found), 1e3 * statistics.median(paces), slowest, members[slowest],
        sum(members[name] for name in names),
        _own(found),
    )  # fmt: skip


def _own(found: Sequence[StageRecord]) -> float | None:
    """Of one step, ms."""
    told = [
        (float(s.fusion["own_seconds"]), int(s.fusion["pieces"]))
        for s in found
        if s.fusion is not None and s.fusion.get("own_seconds") is not None
    ]
    pieces = sum(count for _, count in told)
    return 1e3 * sum(seconds for seconds, _ in told) / pieces if pieces else None


@dataclass(frozen=True, slots=True)
class Symmetry:
    """A mirror asked beside its twin. same: questions with the same text, to the letter."""

    wiring: str
    twin: str
    asked: int
    same: int


def symmetry(grid: Grid) -> list[Symmetry]:
    """For every mirror that was asked too."""
    found = []
    for path in grid.paths:
        if path.twin is None:
            continue
        pairs = [
            (grid.records[t, path.wiring, q], grid.records[t, path.twin, q])
            for t, q in grid.common([path.wiring, path.twin])
        ]
        if pairs:
            found.append(Symmetry(path.wiring, path.twin, len(pairs), sum(a.text == b.text for a, b in pairs)))
    return found
