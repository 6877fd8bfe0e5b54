"""For whoever wants to see stages while they run, in the task in which they do: traces need that, and events can't give it.

The engine knows nothing of traces: it asks the `RunWatch` that is set in the context in which `run` was called, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol

from strategies.engine.events import StageReport
from strategies.planning.plan import Stage
from strategies.topology.ast import Shape

Tell = Callable[[StageReport], None]


class RunWatch(Protocol):
    """Sees stages begin and end."""

    def stage(self, index: int, stage: Stage, shape: Shape) -> AbstractContextManager[Tell]:
        """Around a stage, in its own task: what it calls inherits what is set here. It is told the report, unless the stage failed."""
        ...


WATCH: ContextVar[RunWatch | None] = ContextVar("modelnet.run_watch", default=None)


@contextmanager
def watched(index: int, stage: Stage, shape: Shape) -> Iterator[Tell]:
    """Around a stage."""
    watch = WATCH.get()
    if watch is None:
        yield _nobody
        return
    with watch.stage(index, stage, shape) as tell:
        yield tell


def _nobody(report: StageReport) -> None:
    return
