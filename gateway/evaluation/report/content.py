"""A run's numbers, computed once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.evaluation.anew import judged_anew
from gateway.evaluation.errors import StoreError
from gateway.evaluation.store import StoredRun
from gateway.settings import config_dir
from strategies.evaluation.advice import Advice, Comparison, advise, compare, corrected
from strategies.evaluation.flow import Step, by_writer, steps
from strategies.evaluation.hypotheses import (
    OrderTest,
    SlowestBranch,
    Symmetry,
    WeakEarly,
    order_tests,
    slowest_branch,
    symmetry,
    weak_early,
)
from strategies.evaluation.published import Published, published_from
from strategies.evaluation.summary import Cell, Grid, Price, StructureRow, cells, grid_of, structure_rows


@dataclass(frozen=True, slots=True)
class Content:
    """corresponds: our model → the source experiment's. incomplete: questions × wirings that are not answered yet."""

    run: StoredRun
    grid: Grid
    cells: tuple[Cell, ...]
    structures: tuple[StructureRow, ...]
    advice: Advice
    by_task: Mapping[str, Advice]
    pairs: tuple[Comparison, ...]
    orders: tuple[OrderTest, ...]
    weak: tuple[WeakEarly, ...]
    slowest: SlowestBranch
    mirrors: tuple[Symmetry, ...]
    steps: tuple[Step, ...]
    writers: tuple[Step, ...]
    published: Published
    corresponds: Mapping[str, str]
    prices: Mapping[str, Price]
    incomplete: int
    made: str

    @property
    def failed(self) -> int:
        return sum(cell.failed for cell in self.cells)

    def cell(self, task: str, wiring: str) -> Cell | None:
        return next((c for c in self.cells if (c.task, c.wiring) == (task, wiring) and c.answered), None)

    def structure(self, task: str, structure: str) -> StructureRow | None:
        return next((r for r in self.structures if (r.task, r.structure) == (task, structure)), None)


def build(run: StoredRun, rescore: bool = True, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Content:
    """rescore: judge every answer anew, as far as its question is known. Raises StoreError."""
    grid = grid_of(judged_anew(run) if rescore else run.answers.by_key.values(), run.paths, run.tasks)
    if not grid.records:
        raise StoreError(f"{run.path}: nothing was answered yet")
    prices = {model: Price(*pair) for model, pair in run.notes.get("prices", {}).items()}
    seed = run.settings.seed
    found = tuple(cells(grid, prices))
    advice = advise(grid)
    asked = [grid.records[key] for key in sorted(grid.records) if key[1] in grid.wirings]
    counted = steps(asked)
    return Content(
        run, grid, found, tuple(structure_rows(grid, found, seed)), advice,
        {task: advise(grid, [task]) for task in grid.tasks} if len(grid.tasks) > 1 else {},
        tuple(_pairs(grid)),
        tuple(order_tests(grid, seed)), tuple(weak_early(grid, seed)), slowest_branch(grid, seed), tuple(symmetry(grid)),
        tuple(counted), tuple(by_writer(counted)),
        published(), dict(run.notes.get("corresponds", {})), prices,
        sum(cell.missing for cell in found),
        now().isoformat(timespec="seconds"),
    )  # fmt: skip


def _pairs(grid: Grid) -> list[Comparison]:
    """Of every structure the path that was right most often, each against each."""
    best: dict[str, tuple[float, str]] = {}
    for wiring in grid.wirings:
        right = grid.right([wiring])
        if len(right):
            structure, share = grid.structure(wiring), float(right.mean())
            if structure not in best or share > best[structure][0]:
                best[structure] = share, wiring
    chosen = [wiring for _, wiring in best.values()]
    return corrected([c for i, b in enumerate(chosen) for c in compare(grid, chosen[:i], b)])


def published() -> Published:
    """The source experiment's numbers."""
    file = config_dir() / "evaluation" / "source_experiment.json"
    return published_from(json.loads(file.read_text(encoding="utf-8")))
