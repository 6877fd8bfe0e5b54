"""Runs one stage of a plan: a model that writes text by itself. Groups are in `strategies.engine.fused`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from backends.catalog import Catalog, Entry
from backends.estimate import Tally, prompt_tokens
from backends.protocol import Reading
from backends.types import Message, Sampling, TextDelta, TextRequest, Usage
from strategies.engine.conversation import told_of_tools
from strategies.engine.events import BranchReport, Delta, MemberDropped, Recorded, StageReport, StageRestarted
from strategies.engine.options import Options
from strategies.planning.plan import Branch, TextStage
from strategies.prompting import compose
from strategies.topology.ast import Shape

Emit = Callable[[Delta | MemberDropped | Recorded | StageRestarted], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One stage and all it needs. `previous`: index of a finished stage → the text it hands on. `readings`: place of a branch → what its
    model has read of its conversation already."""

    index: int
    last: bool
    shape: Shape
    messages: tuple[Message, ...]
    previous: Mapping[int, str]
    options: Options
    catalog: Catalog
    emit: Emit
    readings: Mapping[int, Reading] = field(default_factory=dict)

    def conversation(self, branch: Branch, *, native: bool = False) -> tuple[Message, ...]:
        """What a branch reads: the whole conversation with its role's instruction and the answer it is handed, and all about tools as
        text. native: its server knows tools by itself, and reads of them what the client said."""
        answer = None if branch.reads is None else self.previous[branch.reads]
        options = self.options
        messages = compose(self.messages, branch.role, self.shape, options.prompts, answer)
        return messages if native else told_of_tools(messages, options.tools, options.prompts, may_call=self.last)

    def sampling(self) -> Sampling:
        """The request's, with this stage's budget; stop strings and biases (ids of one tokenizer) are the answer's only."""
        sampling = self.options.sampling
        if not self.last:
            return replace(sampling, max_tokens=self.options.stage_max_tokens, stop=(), logit_bias={})
        if sampling.max_tokens is None:
            return replace(sampling, max_tokens=self.options.answer_max_tokens)
        return sampling


def alone(sampling: Sampling, entry: Entry) -> Sampling:
    """For one model alone: what a request leaves open is what it is where that model writes by itself."""
    own: Sampling = getattr(entry.backend, "default_sampling", Sampling())
    temperature = own.temperature if sampling.temperature is None else sampling.temperature
    return replace(sampling, temperature=temperature, top_p=own.top_p if sampling.top_p is None else sampling.top_p)


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
    entry = job.catalog[stage.branch.model]
    backend, native = entry.backend, job.last and entry.native
    extra = job.options.extra if job.last else {}
    request = TextRequest(job.conversation(stage.branch, native=native), job.sampling(), extra)
    reason, usage, tally = "stop", Usage(), Tally()
    with entry.times.shared():  # who reads several tokens at once lets this one wait
        async with backend.stream(request) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    clock.wrote()
                    written.append(event.text + event.refusal)
                    tally.saw(
                        event.text, event.refusal, event.reasoning, *(call.arguments for call in event.tool_calls)
                    )
                    await job.emit(_delta(job, event))
                else:
                    reason, usage = event.finish_reason, event.usage
    if not (usage.prompt_tokens or usage.completion_tokens):
        usage = tally.usage(prompt_tokens(request.messages))  # else limits and budgets would take it for free
    report = BranchReport(stage.branch.model, stage.branch.role, usage)
    return "".join(written), StageReport(job.index, (report,), clock.seconds(), clock.first, reason)


def _delta(job: Job, said: TextDelta) -> Delta:
    """The next stage reads a refusal as it reads any text."""
    if not job.last and said.refusal:
        return Delta(job.index, said.text + said.refusal, said.reasoning, said.tokens, said.tool_calls)
    return Delta(job.index, said.text, said.reasoning, said.tokens, said.tool_calls, said.refusal, said.refusal_tokens)
