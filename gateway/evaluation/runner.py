"""Asks every wiring every question: bounded at once, within a budget, and never a finished one again.

The order is by question: all wirings answer one before the next is asked, in an order that the seed shuffles per question. So a run
that ends early still compares like with like, and a machine that gets slower is no wiring's fault.

A failure is kept beside the answers and asked again next time. A wiring that fails `GIVE_UP` times in a row is left alone for the rest
of the sitting; a gateway that is gone ends it.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import anyio

from gateway.evaluation.client import Client, Refused, Reply, Unreachable
from gateway.evaluation.errors import GatewayGone, SpecError
from gateway.evaluation.spec import Settings, Spec
from gateway.evaluation.store import Store
from strategies.evaluation.judging import Equal
from strategies.evaluation.questions import Question
from strategies.evaluation.records import Record, key_of, scored
from strategies.evaluation.summary import Price, cost_of, cost_of_stages
from strategies.topology import Parallel, Serial, parse

TRIES = 5
GIVE_UP = 5
BACKOFF_SECONDS = 0.5
READY_SECONDS = 600.0
"""For a model that is still loading."""

JUDGE_PROMPT = (
    "Question:\n{question}\n\nRight answer: {answer}\n\nGiven answer:\n{given}\n\n"
    "Does the given answer agree with the right one? Reply with one word: RIGHT or WRONG."
)

_VERDICT = re.compile(r"(\bNOT\s+(?:\w+\s+)?|N['’]T\s+(?:\w+\s+)?)?\b(RIGHT|CORRECT|WRONG|INCORRECT)\b")

Why = Literal["done", "time", "tokens", "money"]


@dataclass(frozen=True, slots=True)
class Job:
    """One question to one wiring."""

    task: str
    question: Question
    wiring: str
    key: str


@dataclass(frozen=True, slots=True)
class Budget:
    """What one sitting may spend; None is no limit. Nothing new is begun once it is spent; what runs is finished."""

    seconds: float | None = None
    tokens: int | None = None
    money: float | None = None


@dataclass(slots=True)
class Sitting:
    """How far this sitting has come. Read by whoever shows progress."""

    total: int
    finished_before: int
    done: int = 0
    failed: int = 0
    tokens: int = 0
    money: float = 0.0
    abandoned: dict[str, str] = field(default_factory=dict)
    why: Why = "done"
    failing: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None


def jobs(spec: Spec) -> Iterator[Job]:
    """All of a run, in the order in which they are asked; mirrors for the first `mirrored` questions of each task."""
    settings = spec.settings.value()
    longest = max((len(task.questions) for task in spec.tasks), default=0)
    for index in range(longest):
        for task in spec.tasks:
            if index < len(task.questions):
                question = task.questions[index]
                wirings = [*spec.wirings, *(spec.mirrors if index < spec.mirrored else ())]
                random.Random(f"{spec.settings.seed}/{task.name}/{index}").shuffle(wirings)
                for wiring in wirings:
                    yield Job(task.name, question, wiring, key_of(task.name, question, wiring, settings))


async def preflight(client: Client, wirings: Sequence[str], wait: float = READY_SECONDS) -> dict[str, str]:
    """Everything that the gateway would refuse, before anything is asked: wiring → what it stands for (aliases expanded).

    Waits for models that load. Raises SpecError, GatewayGone.
    """
    deadline = anyio.current_time() + wait
    found: dict[str, str] = {}
    for wiring in wirings:
        while True:
            try:
                value = (await client.wiring(wiring)).get("modelnet") or {}
                found[wiring] = value.get("wiring", wiring)
                break
            except Unreachable as error:
                raise GatewayGone(f"the gateway does not answer: {error}") from error
            except Refused as refused:
                if not refused.again or anyio.current_time() > deadline:
                    raise SpecError(f"{wiring}: {refused}") from refused
                await anyio.sleep(refused.after or 1.0)
    return found


def ends_in_group(wiring: str) -> bool:
    """Whether the answer is written by a group. wiring: aliases expanded."""
    topology = parse(wiring).topology
    last = topology.stages[-1] if isinstance(topology, Serial) else topology
    return isinstance(last, Parallel)


async def run(
    client: Client,
    spec: Spec,
    store: Store,
    *,
    concurrency: int = 1,
    budget: Budget | None = None,
    prices: dict[str, Price] | None = None,
    equal: Equal | None = None,
    tell: Callable[[Record], None] | None = None,
    sitting: Sitting | None = None,
    meanings: Mapping[str, str] | None = None,
) -> Sitting:
    """Until all is done, or the budget is. meanings: of `preflight`. Raises GatewayGone, StoreError; what was answered is kept."""
    every = list(jobs(spec))
    open_jobs = [job for job in every if not store.answers.finished(job.key)]
    state = sitting or Sitting(0, 0)
    state.total, state.finished_before = len(every), len(every) - len(open_jobs)
    groups = {wiring for wiring, meaning in (meanings or {}).items() if ends_in_group(meaning)}
    work = _Work(client, spec.settings, store, budget or Budget(), prices or {}, equal, tell, state, groups)
    queue = iter(open_jobs)
    failures: list[Exception] = []

    async def worker() -> None:
        try:
            for job in queue:
                if not await work.take(job):
                    return
        except Exception as error:  # noqa: BLE001 - raised below, as itself and not as a group
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(max(1, concurrency)):
            tasks.start_soon(worker)
    if failures:
        raise failures[0]
    return state


class _Work:
    """One sitting's shared state."""

    def __init__(
        self, client: Client, settings: Settings, store: Store, budget: Budget, prices: dict[str, Price],
        equal: Equal | None, tell: Callable[[Record], None] | None, sitting: Sitting, groups: AbstractSet[str],
    ) -> None:  # fmt: skip
        self._client = client
        self._settings = settings
        self._store = store
        self._budget = budget
        self._prices = prices
        self._equal = equal
        self._tell = tell
        self._state = sitting
        self._groups = groups
        self._began = time.monotonic()

    async def take(self, job: Job) -> bool:
        """Do a job. False once the budget is spent."""
        state = self._state
        if (spent := self._spent()) is not None:
            state.why = spent
            return False
        if job.wiring in state.abandoned:
            return True
        record = await self._record(job)
        self._store.append(record)
        state.tokens += record.prompt_tokens + record.completion_tokens
        state.money += cost_of(record, self._prices) or 0.0
        if record.error is None:
            state.done += 1
            state.failing[job.wiring] = 0
        else:
            state.failed += 1
            state.last_error = f"{job.wiring}: {record.error}"
            state.failing[job.wiring] += 1
            if state.failing[job.wiring] >= GIVE_UP:
                state.abandoned[job.wiring] = record.error
        if self._tell is not None:
            self._tell(record)
        return True

    def _spent(self) -> Why | None:
        budget, state = self._budget, self._state
        if budget.seconds is not None and time.monotonic() - self._began >= budget.seconds:
            return "time"
        if budget.tokens is not None and state.tokens >= budget.tokens:
            return "tokens"
        if budget.money is not None and state.money >= budget.money:
            return "money"
        return None

    async def _record(self, job: Job) -> Record:
        question = job.question
        empty = Record(
            job.key, job.task, question.id, job.wiring, question.kind, question.answer,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        try:
            reply = await self._ask(job.wiring, question.text, self._settings)
            judged = await self._judge(question, reply.text)
        except Refused as refused:
            return replace(empty, error=str(refused))
        record = replace(
            empty,
            text=reply.text, finish_reason=reply.finish_reason, seconds=reply.seconds, first_token=reply.first_token,
            prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens, stages=reply.stages, judged=judged,
        )  # fmt: skip
        # Algebra may take seconds: not on the event loop.
        return await anyio.to_thread.run_sync(scored, record, question, self._equal, said_right(judged))

    async def _ask(self, wiring: str, text: str, settings: Settings) -> Reply:
        """With patience for what asking again may help. Raises Refused, GatewayGone."""
        for attempt in range(TRIES):
            wait = BACKOFF_SECONDS * 2**attempt
            try:
                return await self._client.ask(wiring, text, settings, record=wiring in self._groups)
            except Refused as refused:
                if not refused.again or attempt == TRIES - 1:
                    raise
                wait = min(60.0, refused.after) if refused.after is not None else wait
            except Unreachable as error:
                if attempt == TRIES - 1:
                    await self._still_there(error)
                    raise Refused(f"the connection was lost {TRIES} times: {error}", None) from error
            await anyio.sleep(wait)
        raise AssertionError("unreachable")

    async def _still_there(self, error: Unreachable) -> None:
        """Whether it is this question that can't be answered, or no question at all. Raises GatewayGone."""
        try:
            await self._client.models()
        except (Unreachable, Refused):
            raise GatewayGone(f"the gateway does not answer any more ({error})") from error

    async def _judge(self, question: Question, given: str) -> str | None:
        if question.kind != "judge" or self._settings.judge is None:
            return None
        asked = JUDGE_PROMPT.format(question=question.stem or question.text, answer=question.answer, given=given)
        settings = Settings(max_tokens=64, temperature=0.0, seed=self._settings.seed, prompts="default")
        reply = await self._ask(self._settings.judge, asked, settings)
        self._state.tokens += reply.prompt_tokens + reply.completion_tokens
        self._state.money += cost_of_stages(reply.stages, self._prices) or 0.0
        return reply.text.strip()


def said_right(judged: str | None) -> bool | None:
    """A judging model's word: the last RIGHT or WRONG that it says; "not right" is wrong. Without one the answer is taken for wrong."""
    if judged is None:
        return None
    words = list(_VERDICT.finditer(judged.upper()))
    return bool(words) and (words[-1][2] in ("RIGHT", "CORRECT")) is not bool(words[-1][1])
