"""What a sitting shows while it goes on, and what it would cost before it begins."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from gateway.evaluation.cost import Estimate, Line
from gateway.evaluation.runner import Sitting
from gateway.evaluation.spec import Spec
from gateway.evaluation.store import Store
from strategies.evaluation.records import Record

LINE_SECONDS = 20.0
"""Where there is no terminal, a line this often."""


class Progress:
    """A bar with the time left on a terminal, a line now and then elsewhere. Use as a context manager."""

    def __init__(self, console: Console, spec: Spec, store: Store, state: Sitting) -> None:
        self._console = console
        self._state = state
        self._right = self._answered = 0
        self._began = self._last = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, speed_estimate_period=600, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(f"{len(spec.wirings)} wirings", total=None, said="")
        self._started = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, record: Record) -> None:
        """One more answer, or failure."""
        state = self._state
        if not self._started:
            self._started = True
            self._bar.update(self._task, total=state.total, completed=state.finished_before)
        self._answered += record.error is None
        self._right += record.right
        said = f"{self._right}/{self._answered} right" + (f", [red]{state.failed} failed[/]" if state.failed else "")
        self._bar.update(self._task, completed=state.finished_before + state.done + state.failed, said=said)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last >= LINE_SECONDS:
            self._last = now
            finished = state.finished_before + state.done
            rest = (now - self._began) / max(1, state.done + state.failed) * (state.total - finished)
            self._console.print(
                f"{finished} of {state.total}, {said}, about {duration(rest)} left", markup=True, soft_wrap=True
            )


def plan_table(spec: Spec, whole: Estimate, lines: list[Line], concurrency: int) -> RenderableType:
    """What a run would take."""
    questions = sum(len(task.questions) for task in spec.tasks)
    title = f"{len(spec.tasks)} tasks, {questions} questions, {len(spec.paths)} paths, {len(spec.wirings)} of them different"
    caption = f"{whole.requests} requests are left, {whole.finished} finished; {concurrency} at a time"
    if whole.measured < 1:
        caption += f"\ntokens guessed for {100 * (1 - whole.measured):.0f} % of them"
        if whole.seconds is None:
            caption += "; time unknown: --probe measures every model with one question"
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("wiring", overflow="fold")
    for name in ("requests", "tokens", "time", "money"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(line.wiring, str(line.requests), count(line.tokens), duration(line.seconds), _money(line.money))
    tokens = whole.prompt_tokens + whole.completion_tokens
    table.add_section()
    table.add_row("all", str(whole.requests), count(tokens), duration(whole.seconds), _money(whole.money), style="bold")
    return Group(Text(title, "bold"), Text(), table, Text(), Text(caption))


def duration(seconds: float | None) -> str:
    """For people."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """For people."""
    if number >= 1e6:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.1f} k" if number >= 1e4 else f"{number:.0f}"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
