"""A run for notebooks, as pandas data frames.

run = open_run("runs/mine")
run.answers()   one row per answer
run.stages()    one row per stage of an answer
run.summary()   one row per task and wiring, with intervals
run.content     everything that the report shows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.evaluation.report.content import Content, build
from gateway.evaluation.store import StoredRun, read_run

if TYPE_CHECKING:
    import pandas


class Run:
    """A run's directory, read once. Data frames need pandas: pip install 'modelnet-gateway[notebook]'."""

    def __init__(self, stored: StoredRun) -> None:
        self.stored = stored

    @cached_property
    def content(self) -> Content:
        """The report's numbers. Raises StoreError if nothing was answered."""
        return build(self.stored)

    def answers(self) -> pandas.DataFrame:
        """task, question, wiring, structure, outcome, right, given, expected, seconds, tokens, text, error."""
        grid = self.content.grid
        rows = []
        for (task, wiring, question), r in grid.records.items():
            rows.append(
                {
                    "task": task, "question": question, "wiring": wiring, "structure": grid.structure(wiring),
                    "outcome": r.outcome, "right": r.right, "given": r.given, "expected": r.expected, "kind": r.kind,
                    "finish_reason": r.finish_reason, "seconds": r.seconds, "first_token": r.first_token,
                    "prompt_tokens": r.prompt_tokens, "completion_tokens": r.completion_tokens, "text": r.text, "error": r.error,
                }
            )  # fmt: skip
        return _frame(rows)

    def stages(self) -> pandas.DataFrame:
        """task, question, wiring, stage, models, role, right, given, seconds, first_token, tokens, text; of groups the meters, too."""
        rows = []
        for (task, wiring, question), r in self.content.grid.records.items():
            for s in r.stages:
                row: dict[str, Any] = {
                    "task": task, "question": question, "wiring": wiring, "stage": s.stage, "models": "|".join(s.models),
                    "role": s.roles[0] if s.roles else None, "right": s.right, "given": s.given, "seconds": s.seconds,
                    "first_token": s.first_token, "finish_reason": s.finish_reason,
                    "prompt_tokens": sum(read for read, _ in s.tokens.values()),
                    "completion_tokens": sum(wrote for _, wrote in s.tokens.values()), "text": s.text,
                }  # fmt: skip
                rows.append(row | {f"fusion_{key}": value for key, value in (s.fusion or {}).items()})
        return _frame(rows)

    def summary(self) -> pandas.DataFrame:
        """One row per task and wiring, as in the report."""
        return _frame([asdict(cell) for cell in self.content.cells])


def open_run(directory: str | Path) -> Run:
    """Raises StoreError."""
    return Run(read_run(Path(directory)))


def _frame(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install 'modelnet-gateway[notebook]'") from error
    return pandas.DataFrame(rows)
