"""Runs a plan's stages as tasks and hands their events to one reader."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from backends.catalog import Catalog
from backends.types import Message, Usage
from strategies.engine.again import run_unless_broken
from strategies.engine.check import by_session, check
from strategies.engine.early_prefill import EarlyPrefill
from strategies.engine.events import (
    Delta,
    Event,
    Finished,
    MemberDropped,
    Recorded,
    StageFinished,
    StageReport,
    StageRestarted,
    StageStarted,
)
from strategies.engine.fused import run_fused
from strategies.engine.options import Options
from strategies.engine.stages import Job
from strategies.engine.watching import watched
from strategies.planning.plan import FusedStage, Plan, Stage, TextStage, branches
from strategies.prompting import cut_reasoning

BUFFERED_EVENTS = 16
"""Events that wait for a slow reader before the stages wait too."""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


@asynccontextmanager
async def run(
    plan: Plan, messages: Sequence[Message], options: Options, catalog: Catalog
) -> AsyncIterator[AsyncIterator[Event]]:
    """See the package. Raises from the iterator whatever `backends.errors` a stage met; nothing runs after the block."""
    send, receive = anyio.create_memory_object_stream[Event | _Failure](BUFFERED_EVENTS)
    stopped: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stages, plan, tuple(messages), options, catalog, send)
        try:
            yield _read(receive)
        except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it; raised again below
            stopped = error
        receive.close()
        tasks.cancel_scope.cancel()
    if stopped is not None:
        raise stopped


async def _read(receive: MemoryObjectReceiveStream[Event | _Failure]) -> AsyncIterator[Event]:
    async for item in receive:
        if isinstance(item, _Failure):
            raise item.error
        yield item


async def _write(stage: Stage, job: Job, group: FusedStage | None) -> tuple[str, StageReport]:
    """group: the stage, if its text comes out of token sessions."""
    if isinstance(stage, TextStage):
        return await run_unless_broken(stage, job, group)
    return await run_fused(stage, job)


def _handed_on(text: str, stage: Stage, catalog: Catalog) -> str:
    for branch in branches(stage):
        if marks := catalog[branch.model].reasoning:
            text = cut_reasoning(text, marks)
    return text


async def _stages(
    plan: Plan,
    messages: tuple[Message, ...],
    options: Options,
    catalog: Catalog,
    send: MemoryObjectSendStream[Event | _Failure],
) -> None:
    done = [anyio.Event() for _ in plan.stages]
    texts: dict[int, str] = {}
    ended: dict[int, float] = {}
    reports: dict[int, StageReport] = {}
    early = EarlyPrefill(plan, messages, options, catalog)

    async def emit(event: Delta | MemberDropped | Recorded | StageRestarted) -> None:
        early.saw(event)
        await send.send(event)

    async def run_stage(index: int) -> None:
        stage = plan.stages[index]
        read = {branch.reads for branch in branches(stage) if branch.reads is not None}
        for earlier in read:
            await done[earlier].wait()
        early.started(index)
        last = index == len(plan.stages) - 1
        job = Job(index, last, plan.shape, messages, texts, options, catalog, emit, early.readings(index))
        await send.send(StageStarted(index))
        group = by_session(stage, options, catalog, last=last, messages=messages)
        if group is None:
            await early.let_go(index)
        with watched(index, stage, plan.shape) as tell:
            waited = time.perf_counter() - max((ended[earlier] for earlier in read), default=0.0)
            text, report = await _write(stage, job, group)
            ended[index] = time.perf_counter()
            gap = waited + report.first_token if read and report.first_token is not None else None
            report = replace(report, gap=gap, prefill=early.report(index))
            tell(report)
        text = _handed_on(text, stage, catalog)
        texts[index], reports[index] = text, report
        early.finished(index, text)
        await send.send(StageFinished(report))
        done[index].set()

    async def contained(index: int) -> None:
        try:
            await run_stage(index)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # nobody reads any more: the block was left, and the cancellation is on its way
        except Exception as error:  # noqa: BLE001 - the reader of the events raises it
            await send.send(_Failure(error))

    async with send:
        try:
            await check(plan, options, catalog)
        except Exception as error:  # noqa: BLE001 - the reader of the events raises it
            await send.send(_Failure(error))
            return
        async with early.begun() as tasks:
            for index in range(len(plan.stages)):
                tasks.start_soon(contained, index)
        if len(reports) == len(plan.stages):
            ordered = tuple(reports[index] for index in range(len(plan.stages)))
            usage = sum((report.usage for report in ordered), Usage())
            await send.send(Finished(ordered[-1].finish_reason, usage, ordered))
