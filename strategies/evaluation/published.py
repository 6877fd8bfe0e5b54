"""The source experiment's published numbers, and whether its own tables agree with each other.

The numbers are data (`config/evaluation/`); here their means, spreads and best paths are computed anew by the code that makes our
own reports, and every one that does not come out as printed is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.evaluation.statistics import newcombe
from strategies.evaluation.summary import mean, sd

STRUCTURES = ("si", "pi", "s2p", "p2s")
HALF = 0.005 + 1e-9
"""Numbers are printed with two digits."""


@dataclass(frozen=True, slots=True)
class Published:
    """Accuracy in %, seconds per question. singles: task → model → (accuracy, seconds); best: task → structure → the same.

    paths: structure → path → accuracies by task. means: the printed means; spreads: structure → (mean, σ, mean seconds, σ).
    step: parts of a parallel step, ms. aliases: other names of its tasks, in small letters.
    """

    source: str
    questions: int
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    singles: Mapping[str, Mapping[str, tuple[float, float]]]
    best: Mapping[str, Mapping[str, tuple[float, float]]]
    means: Mapping[str, tuple[float, float]]
    task_means: Mapping[str, tuple[float, float]]
    spreads: Mapping[str, tuple[float, float, float, float]]
    paths: Mapping[str, Mapping[str, tuple[float, ...]]]
    step: Mapping[str, float]
    aliases: Mapping[str, str]

    def task(self, name: str) -> str | None:
        """Its task that goes by this name, if one does."""
        folded = name.casefold()
        return next((t for t in self.tasks if t.casefold() == folded), self.aliases.get(folded))


def published_from(value: Mapping[str, Any]) -> Published:
    """From JSON. Raises KeyError, TypeError, ValueError if it is not of that form."""

    def pairs(table: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        return {name: (float(accuracy), float(seconds)) for name, (accuracy, seconds) in table.items()}

    return Published(
        source=value["source"],
        questions=value["questions"],
        tasks=tuple(value["tasks"]),
        models=tuple(value["models"]),
        singles={task: pairs(table) for task, table in value["singles"].items()},
        best={task: pairs(table) for task, table in value["best"].items()},
        means=pairs(value["means"]),
        task_means=pairs(value["task_means"]),
        spreads={name: (float(a), float(b), float(c), float(d)) for name, (a, b, c, d) in value["spreads"].items()},
        paths={s: {p: tuple(map(float, row)) for p, row in table.items()} for s, table in value["paths"].items()},
        step={name: float(ms) for name, ms in value["step_ms"].items()},
        aliases=value["aliases"],
    )


@dataclass(frozen=True, slots=True)
class Check:
    """One printed number and what its own table gives. recomputed is None where the table for it was not printed."""

    table: str
    what: str
    printed: float
    recomputed: float | None

    @property
    def agrees(self) -> bool | None:
        return None if self.recomputed is None else abs(self.printed - self.recomputed) <= HALF


def recompute(paper: Published) -> list[Check]:
    """Means over models and tasks, best paths, spreads over paths, and the parts of a step."""
    checks: list[Check] = []
    for task in paper.tasks:
        for i, unit in enumerate(("accuracy", "seconds")):
            found = mean([paper.singles[task][model][i] for model in paper.models])
            checks.append(
                Check("means", f"{task}, mean of the single models, {unit}", paper.task_means[task][i], found)
            )
    for model in paper.models:
        for i, unit in enumerate(("accuracy", "seconds")):
            found = mean([paper.singles[task][model][i] for task in paper.tasks])
            checks.append(Check("means", f"{model}, mean over tasks, {unit}", paper.means[model][i], found))
    for i, unit in enumerate(("accuracy", "seconds")):
        found = mean([paper.singles[task][model][i] for task in paper.tasks for model in paper.models])
        checks.append(Check("means", f"single models, mean over tasks, {unit}", paper.means["single"][i], found))
        for structure in STRUCTURES:
            found = mean([paper.best[task][structure][i] for task in paper.tasks])
            checks.append(
                Check("means", f"{structure}, best paths, mean over tasks, {unit}", paper.means[structure][i], found)
            )
    for structure in STRUCTURES:
        table = paper.paths.get(structure)
        for index, task in enumerate(paper.tasks):
            highest = max(row[index] for row in table.values()) if table else None
            checks.append(Check("best path", f"{structure}, {task}, accuracy", paper.best[task][structure][0], highest))
        shares = [mean(row) for row in table.values()] if table else None
        average, deviation, seconds, seconds_deviation = paper.spreads[structure]
        checks += [
            Check("spread", f"{structure}, mean accuracy over paths", average, mean(shares) if shares else None),
            Check("spread", f"{structure}, σ of accuracy over paths", deviation, sd(shares) if shares else None),
            Check("spread", f"{structure}, mean seconds over paths", seconds, None),
            Check("spread", f"{structure}, σ of seconds over paths", seconds_deviation, None),
        ]
    step = paper.step
    whole = step["slowest branch"] + step["transfer"] + step["aggregation"]
    checks.append(
        Check(
            "step",
            "slowest branch, % of the step",
            step["slowest branch %"],
            round(100 * step["slowest branch"] / whole, 1),
        )
    )
    return checks


@dataclass(frozen=True, slots=True)
class Claim:
    """A difference that the tables suggest, and its 95 % interval (Newcombe; the answers question by question were not printed)."""

    task: str
    better: str
    worse: str
    shares: tuple[float, float]
    low: float
    high: float

    @property
    def shown(self) -> bool:
        return self.low > 0


def claims(paper: Published) -> list[Claim]:
    """Its best structure against the next one, and against its best single model, task by task."""
    found = []
    for task in paper.tasks:
        together = sorted(paper.best[task].items(), key=lambda item: -item[1][0])
        alone = max(paper.singles[task].items(), key=lambda item: item[1][0])
        (name, (top, _)), second = together[0], together[1]
        for other, (share, _) in (second, alone):
            n = paper.questions
            low, high = newcombe(round(top * n / 100), n, round(share * n / 100), n)
            found.append(Claim(task, name, other, (top, share), low, high))
    return found
