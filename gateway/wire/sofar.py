"""What a choice has taken by the time that something of it is written, for clients that want it in every chunk.

A stage that has finished says exactly what it read and wrote. Of one that runs only this is known: each of its models has read its
prompt, which is estimated, and written about a token for every piece that was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.types import Usage
from strategies.engine.events import Delta, Event, Finished, StageFinished, StageRestarted, StageStarted
from strategies.planning import Plan
from strategies.planning.plan import branches


@dataclass(slots=True)
class SoFar:
    """Of one run. prompt: its estimated tokens."""

    plan: Plan
    prompt: int
    _known: Usage = field(default_factory=Usage)
    _open: dict[int, int] = field(default_factory=dict)  # stages that run → pieces of them

    def saw(self, event: Event) -> None:
        """An event of the run."""
        if isinstance(event, Delta):
            if event.stage in self._open:  # an echo comes before its stage, and nobody wrote it
                self._open[event.stage] += 1
        elif isinstance(event, StageStarted | StageRestarted):
            self._open[event.stage] = 0
        elif isinstance(event, StageFinished):
            self._open.pop(event.report.stage, None)
            self._known += event.report.usage
        elif isinstance(event, Finished):
            self._open.clear()
            self._known = event.usage

    @property
    def usage(self) -> Usage:
        """Tokens of all its stages and members."""
        running = [
            Usage(self.prompt, pieces, estimated=True)
            for stage, pieces in self._open.items()
            for _ in branches(self.plan.stages[stage])
        ]
        return sum(running, self._known)
