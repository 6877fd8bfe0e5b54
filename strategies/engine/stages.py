"""Runs one stage of a plan: a model that writes text, or a group that writes it together."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio

from backends.catalog import Catalog
from backends.errors import BackendError, CapabilityMissing, ContextTooLong
from backends.protocol import Session, TokenBackend
from backends.textout import TextOut
from backends.types import LogProbs, Message, Sampling, TextDelta, TextRequest, Usage
from strategies.engine.events import BranchReport, Delta, StageReport
from strategies.engine.options import Options
from strategies.fusion import FUSERS, Fuser, Lookup, Node, NothingToSay, chooser_for, route
from strategies.planning.plan import Branch, FusedStage, TextStage
from strategies.prompting import compose
from strategies.topology.ast import Shape
from strategies.vocabulary import inventory_of

T = TypeVar("T")

Emit = Callable[[Delta], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One stage and all it needs. `previous`: index of a finished stage → the text it hands on."""

    index: int
    last: bool
    shape: Shape
    messages: tuple[Message, ...]
    previous: Mapping[int, str]
    options: Options
    catalog: Catalog
    emit: Emit

    def conversation(self, branch: Branch) -> tuple[Message, ...]:
        """What a branch reads: the whole conversation with its role's instruction and the answer it is handed."""
        answer = None if branch.reads is None else self.previous[branch.reads]
        return compose(self.messages, branch.role, self.shape, self.options.prompts, answer)

    def sampling(self) -> Sampling:
        """The request's, with this stage's budget; stop strings are the answer's only."""
        sampling = self.options.sampling
        if not self.last:
            return replace(sampling, max_tokens=self.options.stage_max_tokens, stop=())
        if sampling.max_tokens is None:
            return replace(sampling, max_tokens=self.options.answer_max_tokens)
        return sampling


class Clock:
    """Seconds since a stage's start, and when it wrote first."""

    __slots__ = ("_began", "first")

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.first: float | None = None

    def wrote(self) -> None:
        if self.first is None:
            self.first = self.seconds()

    def seconds(self) -> float:
        return time.perf_counter() - self._began


async def run_text(stage: TextStage, job: Job) -> tuple[str, StageReport]:
    """A model writes by itself, over its backend's own completion stream."""
    clock, written = Clock(), []
    backend = job.catalog[stage.branch.model].backend
    extra = job.options.extra if job.last else {}
    request = TextRequest(job.conversation(stage.branch), job.sampling(), extra)
    reason, usage = "stop", Usage()
    async with backend.stream(request) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                clock.wrote()
                written.append(event.text)
                await job.emit(Delta(job.index, event.text, event.reasoning))
            else:
                reason, usage = event.finish_reason, event.usage
    report = BranchReport(stage.branch.model, stage.branch.role, usage)
    return "".join(written), StageReport(job.index, (report,), clock.seconds(), clock.first, reason)


async def run_fused(stage: FusedStage, job: Job) -> tuple[str, StageReport]:
    """A group writes together: every committed piece is said by all before the next is chosen."""
    clock, texts = Clock(), []
    sampling = job.sampling()
    fuser = await _fuser(stage, job, sampling)
    async with AsyncExitStack() as stack:
        sessions = await _open(stack, stage, job)
        group = _Group([branch.model for branch in stage.branches], fuser, sessions)
        stops = [*sampling.stop, *(s for b in stage.branches for s in _turn_stops(job.catalog, b))]
        out = TextOut(stops)
        reason, pieces = "length", 0
        while sampling.max_tokens is None or pieces < sampling.max_tokens:
            try:
                await group.advance()
            except ContextTooLong:
                if not pieces:
                    raise
                break
            said = fuser.commit()
            pieces += 1
            text = out.finish() if said.end else out.feed(said.text)
            if text:
                clock.wrote()
                texts.append(text)
                await job.emit(Delta(job.index, text))
            if said.end or out.stopped:
                reason = "stop"
                break
        if reason == "length" and (rest := out.finish()):
            texts.append(rest)
            await job.emit(Delta(job.index, rest))
        reports = tuple(
            BranchReport(b.model, b.role, Usage(s.prompt_tokens, written), weight)
            for b, s, written, weight in zip(stage.branches, sessions, group.written(), stage.weights, strict=True)
        )
    meters = replace(fuser.meters, passes=group.passes)
    return "".join(texts), StageReport(job.index, reports, clock.seconds(), clock.first, reason, meters)


class _Group:
    """The sessions of a group and where each of them stands."""

    __slots__ = ("_fuser", "_names", "passes", "places", "sessions")

    def __init__(self, names: Sequence[str], fuser: Fuser, sessions: Sequence[Session]) -> None:
        self._names = names
        self._fuser = fuser
        self.sessions = sessions
        self.places = [nodes[0] for nodes in fuser.due()]
        self.passes = 0

    async def advance(self) -> None:
        """Everything the fuser needs for its next piece."""
        fuser = self._fuser
        await together([self._visit(member, nodes) for member, nodes in enumerate(fuser.due()) if nodes])
        while wanted := self._wants():
            values = await together([self._look_up(lookup) for lookup in wanted])
            for lookup, logprobs in zip(wanted, values, strict=True):
                if logprobs is not None:
                    fuser.supply(lookup, logprobs)

    def written(self) -> list[int]:
        """Tokens that each member has said: also those of the last piece, which nobody needed to read any more."""
        return [max(p.depth, *(n.depth for n in due), 0) for p, due in zip(self.places, self._fuser.due(), strict=True)]

    async def _visit(self, member: int, nodes: Sequence[Node]) -> None:
        session = self.sessions[member]
        for node in nodes:
            drop, append = route(self.places[member], node)
            if drop:
                await session.rewind(drop)
            top = await session.step(append)
            self.places[member] = node
            self.passes += 1
            self._fuser.feed(member, node, top)

    def _wants(self) -> Sequence[Lookup]:
        try:
            return self._fuser.wants()
        except NothingToSay as error:
            message = f"The models {', '.join(self._names)} gave no text a probability, only control tokens."
            raise BackendError(self._names[0], message) from error

    async def _look_up(self, lookup: Lookup) -> LogProbs | None:
        """None where the server can't: the step is then chosen from the lists alone, and metered as uncertified."""
        try:
            return await self.sessions[lookup.member].lookup(lookup.ids)
        except CapabilityMissing:
            return None


async def _fuser(stage: FusedStage, job: Job, sampling: Sampling) -> Fuser:
    vocabularies = [await _tokens(job.catalog, branch).vocabulary() for branch in stage.branches]
    await anyio.to_thread.run_sync(inventory_of, tuple(vocabularies))  # the first time it takes a second
    return FUSERS[job.options.fuser](vocabularies, stage.weights, chooser_for(sampling))


async def _open(stack: AsyncExitStack, stage: FusedStage, job: Job) -> list[Session]:
    """Open the group's sessions one after another in the order of their models' names.

    With that order two groups can't each hold what the other waits for. A model that is wanted more than once is opened
    under its entry's lock, so that two groups can't each hold a part of one model's places.
    """
    several = {b.model for b in stage.branches if sum(other.model == b.model for other in stage.branches) > 1}
    wanted = job.options.sampling.max_tokens if job.last else None
    sessions = []
    async with AsyncExitStack() as locks:
        held = None
        for branch in stage.branches:
            if branch.model != held:
                await locks.aclose()
                held = branch.model
                if held in several:
                    await locks.enter_async_context(job.catalog[held].opening)
            backend = _tokens(job.catalog, branch)
            opening = backend.open(job.conversation(branch), k=job.options.top_k, max_tokens=wanted)
            sessions.append(await stack.enter_async_context(opening))
    return sessions


def _tokens(catalog: Catalog, branch: Branch) -> TokenBackend:
    entry = catalog[branch.model]
    backend = entry.token_backend()
    if backend is None:  # planning refuses this; a model may have lost the ability since
        raise CapabilityMissing(branch.model, entry.why_not_fused or f"{branch.model} opens no token sessions")
    return backend


def _turn_stops(catalog: Catalog, branch: Branch) -> tuple[str, ...]:
    return tuple(getattr(catalog[branch.model].backend, "turn_stops", ()))


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Results of all calls, made side by side; if one fails, the others are cancelled and its own error is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    results: dict[int, T] = {}

    async def keep(index: int, call: Awaitable[T]) -> None:
        results[index] = await call

    try:
        async with anyio.create_task_group() as tasks:
            for index, call in enumerate(calls):
                tasks.start_soon(keep, index, call)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    return [results[index] for index in range(len(calls))]


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a tree of exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
