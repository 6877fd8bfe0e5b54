"""What one request has spent so far, as far as can be known at any moment.

A stage that has finished says exactly what it read and wrote. Of one that is cut short (the client left, a member failed) only this is
known: each of its models has read its prompt, which is estimated, and written about a token for every piece that was seen. A model that was
not asked, or refused before it read anything, has cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.errors import BackendError, read_nothing
from backends.types import Usage
from gateway.keys.store import Spent
from gateway.ledger.prices import Prices
from strategies.engine.events import Delta, Event, StageFinished, StageReport, StageRestarted, StageStarted
from strategies.planning import Plan
from strategies.planning.plan import branches


@dataclass(slots=True)
class Meter:
    """Of all runs of one request: choices, and attempts before a fallback. prompt: its estimated tokens."""

    prices: Prices
    prompt: int = 0
    stages: list[StageReport] = field(default_factory=list)
    _usage: Usage = field(default_factory=Usage)
    _nano: int = 0

    def run(self, plan: Plan, keep: bool = False) -> RunMeter:
        """For one run of a plan. keep: remember the text of the answer."""
        return RunMeter(self, plan, keep)

    def add(self, model: str, usage: Usage) -> None:
        """What one model spent, where there is no plan to watch."""
        self._usage += usage
        self._nano += self.prices.nano(model, usage.prompt_tokens, usage.completion_tokens)

    def finished(self, report: StageReport) -> None:
        """A stage is over, and told what it spent."""
        self.stages.append(report)
        for branch in report.branches:
            self.add(branch.model, branch.usage)

    @property
    def usage(self) -> Usage:
        """Tokens, all models added up."""
        return self._usage

    @property
    def spent(self) -> Spent:
        """The same, with what it costs."""
        return Spent(self._usage.prompt_tokens + self._usage.completion_tokens, self._nano)


class RunMeter:
    """Watches the events of one run. `close` when it is over, however that was; closing twice does nothing more.

    parts: the text of the answer, if it is to be kept.
    """

    def __init__(self, meter: Meter, plan: Plan, keep: bool) -> None:
        self.parts: list[str] = []
        self._meter = meter
        self._plan = plan
        self._keep = keep
        self._open: dict[int, int] = {}

    def saw(self, event: Event) -> None:
        """An event of the run."""
        if isinstance(event, Delta):
            self._open[event.stage] = self._open.get(event.stage, 0) + 1
            if self._keep and event.stage == len(self._plan.stages) - 1:
                self.parts.append(event.text + event.refusal)
        elif isinstance(event, StageStarted):
            self._open.setdefault(event.stage, 0)
        elif isinstance(event, StageRestarted):
            self._cut(event.stage)
            self._open[event.stage] = 0
        elif isinstance(event, StageFinished):
            self._open.pop(event.report.stage, None)
            self._meter.finished(event.report)

    def close(self, failure: Exception | None = None) -> None:
        """Count what was cut short, by this failure (of this run or another of the same request) if there was one."""
        spared = failure.model if isinstance(failure, BackendError) and read_nothing(failure) else None
        for stage in tuple(self._open):
            self._cut(stage, spared)

    def _cut(self, stage: int, spared: str | None = None) -> None:
        """Count a stage that was cut short. spared: a model that has read nothing; the others of its stage hardly began, then, unless
        something was written."""
        pieces = self._open.pop(stage, 0)
        found = list(branches(self._plan.stages[stage]))
        if pieces or spared not in [branch.model for branch in found]:
            for branch in found:
                self._meter.add(branch.model, Usage(self._meter.prompt, pieces))
