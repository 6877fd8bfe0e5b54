"""`modelnet eval`: how often, how fast, and how exactly wirings answer a question set."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.table import Table

from backends.errors import BackendError
from backends.types import Message, Sampling
from gateway.cli.check import complain, read_config, say
from gateway.observability.logs import setup_logs
from gateway.runtime import ModelNotReady, NothingLoaded, Runtime, open_runtime
from gateway.settings import Loaded, SettingsError
from strategies.engine import run
from strategies.engine.events import Delta, Finished
from strategies.evaluation import Question, is_right, question_from, wilson
from strategies.topology import TopologyError


@dataclass(frozen=True, slots=True)
class Answer:
    """One question answered by one wiring. seconds, first_token: from asking; tokens: written by all stages and members."""

    wiring: str
    question: str
    right: bool
    text: str
    finish_reason: str
    seconds: float
    first_token: float | None
    tokens: int
    pieces: int
    certified: int
    uncertified: int
    drift: int
    lost_mass: float


def evaluate(
    config: Path | None,
    data: Path,
    wirings: Sequence[str],
    limit: int | None,
    budget: int,
    concurrency: int,
    out: Path | None,
) -> int:
    """Ask every wiring every question, greedy, `concurrency` at a time. Returns the exit code."""
    setup_logs("warning", "console")
    try:
        loaded = read_config(config)
        questions = read_questions(data, limit)
        if out is not None:
            out.touch()  # that it can't be written must not show after an hour
    except (SettingsError, OSError, ValueError) as error:
        return complain(error)
    return anyio.run(partial(_evaluate, loaded, questions, wirings, budget, concurrency, out))


def read_questions(data: Path, limit: int | None) -> list[Question]:
    """The first questions of a JSON-lines file. Raises OSError, ValueError."""
    questions: list[Question] = []
    for number, line in enumerate(data.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and (limit is None or len(questions) < limit):
            try:
                questions.append(question_from(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{data}:{number}: {error}") from error
    if not questions:
        raise ValueError(f"{data}: no questions")
    return questions


async def _evaluate(
    loaded: Loaded, questions: list[Question], wirings: Sequence[str], budget: int, concurrency: int, out: Path | None
) -> int:
    answers: list[Answer] = []
    async with open_runtime(loaded) as runtime:
        try:
            await runtime.wait_loaded()
            for wiring in wirings:
                runtime.prepare(wiring, Sampling(), {})  # all of them are checked before the first is asked
            for wiring in wirings:
                answers += await _answers(runtime, wiring, questions, budget, concurrency)
                say(f"{wiring}: {sum(a.right for a in answers if a.wiring == wiring)} of {len(questions)}")
                if out is not None:
                    written = json.dumps([asdict(answer) for answer in answers], ensure_ascii=False, indent=1)
                    out.write_text(written, encoding="utf-8")
        except TopologyError as error:
            return complain(error)
        except (NothingLoaded, ModelNotReady, BackendError) as error:
            say(str(error))
            return 1
    Console(highlight=False).print(_table(answers, wirings))
    return 0


async def _answers(
    runtime: Runtime, wiring: str, questions: Sequence[Question], budget: int, concurrency: int
) -> list[Answer]:
    """In the order of the questions. The first BackendError ends it: a share of right answers must not hide failures."""
    found: dict[int, Answer] = {}
    failed: list[BackendError] = []
    limiter = anyio.CapacityLimiter(concurrency)

    async def ask(index: int) -> None:
        async with limiter:
            try:
                found[index] = await _answer(runtime, wiring, questions[index], budget)
            except BackendError as error:  # raised below, as itself and not as a group
                failed.append(error)
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index in range(len(questions)):
            tasks.start_soon(ask, index)
    if failed:
        raise failed[0]
    return [found[index] for index in range(len(questions))]


async def _answer(runtime: Runtime, wiring: str, question: Question, budget: int) -> Answer:
    prepared = runtime.prepare(wiring, Sampling(max_tokens=budget, temperature=0.0), {})
    last, text, first = len(prepared.plan.stages) - 1, [], None
    began = time.perf_counter()
    finished: Finished | None = None
    messages = (Message("user", question.text),)
    async with run(prepared.plan, messages, prepared.options, runtime.catalog) as events:
        async for event in events:
            if isinstance(event, Delta) and event.stage == last:
                first = time.perf_counter() - began if first is None else first
                text.append(event.text)
            elif isinstance(event, Finished):
                finished = event
    assert finished is not None
    seconds = time.perf_counter() - began
    meters = [stage.meters for stage in finished.stages if stage.meters is not None]
    whole = "".join(text)
    return Answer(
        wiring,
        question.id,
        is_right(question, whole),
        whole,
        finished.finish_reason,
        seconds,
        first,
        finished.usage.completion_tokens,
        sum(m.pieces for m in meters),
        sum(m.certified + m.looked_up for m in meters),
        sum(m.uncertified for m in meters),
        sum(m.drift for m in meters),
        sum(m.lost_mass for m in meters),
    )


def _table(answers: Sequence[Answer], wirings: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = (
        "wiring",
        "right",
        "share",
        "95 %",
        "s/question",
        "first token, s",
        "tokens",
        "certified",
        "repairs",
        "lost/piece",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "wiring" else "right")
    for wiring in wirings:
        table.add_row(wiring, *_row([answer for answer in answers if answer.wiring == wiring]))
    return table


def _row(mine: Sequence[Answer]) -> list[Any]:
    right, asked, pieces = sum(a.right for a in mine), len(mine), sum(a.pieces for a in mine)
    low, high = wilson(right, asked)
    firsts = [a.first_token for a in mine if a.first_token is not None]
    return [
        f"{right}/{asked}",
        f"{100 * right / asked:.0f} %",
        f"{100 * low:.0f}-{100 * high:.0f}",
        f"{statistics.median(a.seconds for a in mine):.1f}",
        f"{statistics.median(firsts):.1f}" if firsts else "-",
        f"{statistics.mean(a.tokens for a in mine):.0f}",
        f"{100 * sum(a.certified for a in mine) / pieces:.1f} %" if pieces else "",
        str(sum(a.drift for a in mine)) if pieces else "",
        f"{100 * sum(a.lost_mass for a in mine) / pieces:.2f} %" if pieces else "",
    ]
