"""Running a stage again when its model breaks off: possible as long as nobody has seen what it wrote.

That is so for every stage but the last, unless intermediate text is shown. Only stages of one model, however it writes: a group has members
to go on with.
"""

from __future__ import annotations

import time
from dataclasses import replace

from backends.errors import BackendTimeout, BackendUnavailable, CircuitOpen
from strategies.engine.events import StageReport, StageRestarted
from strategies.engine.fused import run_fused
from strategies.engine.stages import Job, run_text
from strategies.planning.plan import FusedStage, TextStage


async def run_unless_broken(stage: TextStage, job: Job, group: FusedStage | None = None) -> tuple[str, StageReport]:
    """As `run_text`, or `run_fused` where the model is a group of one, but repeated where the model failed, as often as `options.reruns`
    says and `options.may_rerun` allows."""
    options = job.options
    began, left = time.perf_counter(), 0 if job.last else options.reruns
    while True:
        wasted = time.perf_counter() - began
        try:
            text, report = await (run_text(stage, job) if group is None else run_fused(group, job))
        except (BackendUnavailable, BackendTimeout) as error:
            if not left or error.lasting or isinstance(error, CircuitOpen) or not options.may_rerun(stage.branch.model):
                raise
            left -= 1
            await job.emit(StageRestarted(job.index))
        else:
            first = None if report.first_token is None else report.first_token + wasted
            return text, replace(report, seconds=report.seconds + wasted, first_token=first)
