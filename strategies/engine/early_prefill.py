"""Early prefill: while a stage writes, the models that will read its answer read what there is of it already.

A stage begins when the answers that it reads are whole, and its models would begin to read only then. Where an engine keeps what it has
read (`backends.protocol.PreparingBackend`), it is given the stage's conversation before, with as much of the answer as is written, again
and again while that grows; all of it, where a sentence has just ended, for it may be the last. When the stage begins, only the end is left
to read; and a group's sessions may go on from where it was read (`backends.protocol.Reading.open`).

Invariants: no text depends on it, for all that it leaves behind is what engines have computed of just these token ids. No stage waits
for it: what is under way is called off before a stage opens anything. No failure of it leaves this module, and a backend that failed once
is left alone for the rest of the run. One call at a time for each model, and none while the model writes for this run: it has better to
do. What is held for a stage is let go when it begins, or with the run.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from backends.catalog import Catalog
from backends.errors import CapabilityMissing
from backends.protocol import PreparingBackend, Reading
from backends.raw import is_raw
from backends.types import Message
from strategies.engine.check import by_session
from strategies.engine.events import Delta, Event, PrefillReport, StageRestarted
from strategies.engine.options import Options
from strategies.engine.stages import Job
from strategies.planning.plan import Branch, Plan, Stage, TextStage, branches
from strategies.prompting import partial_answer

FIRST = 64
"""Tokens of new text after which a model reads the first of it."""
BYTES = 4
"""Of a token, about."""
ENDS = re.compile(r"[.!?:;…。！？：；)\]}>*`|\"'”’»]\s*\Z")
"""What an answer mostly ends with."""
SHAPING = frozenset(
    "tools functions chat_template chat_template_kwargs add_generation_prompt continue_final_message documents reasoning_effort".split()
)
"""Fields for the server of a native last stage that change how it renders a conversation, as we can't here."""


class EarlyPrefill:
    """Of one run. It reads within `begun`, and is told what the stages do."""

    def __init__(self, plan: Plan, messages: Sequence[Message], options: Options, catalog: Catalog) -> None:
        self._stages = plan.stages
        self._written = [_Written(stage, catalog) for stage in plan.stages]
        self._engines: dict[str, _Engine] = {}
        self._readers: list[list[_Reader]] = [[] for _ in plan.stages]
        if options.early_prefill == "off" or is_raw(messages):
            return
        for index, stage in enumerate(plan.stages):
            if all(branch.reads is None for branch in branches(stage)):
                continue  # it begins at once
            last = index == len(plan.stages) - 1
            job = Job(index, last, plan.shape, tuple(messages), {}, options, catalog, _unheard)
            group = by_session(stage, options, catalog, last=last, messages=messages)
            k = None if group is None else options.top_k
            for place, branch in enumerate(branches(stage)):
                entry = catalog[branch.model]
                backend = entry.token_backend()
                native = last and entry.native and isinstance(stage, TextStage)
                if not isinstance(backend, PreparingBackend) or (native and not SHAPING.isdisjoint(options.extra)):
                    continue
                engine = self._engines.setdefault(branch.model, _Engine())
                written = None if branch.reads is None else self._written[branch.reads]
                reading = backend.reading(k=k)
                self._readers[index].append(_Reader(engine, reading, job, branch, place, native, written))

    def readings(self, index: int) -> Mapping[int, Reading]:
        """Place of a branch in its stage → what was read for it."""
        return {reader.place: reader.reading for reader in self._readers[index]}

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[TaskGroup]:
        """All read in tasks of their own, which end when their stages begin. The stages belong in the same group of tasks."""
        try:
            async with anyio.create_task_group() as tasks:
                for reader in self._all():
                    tasks.start_soon(reader.run)
                yield tasks
        finally:
            with anyio.CancelScope(shield=True):
                for reader in self._all():
                    await reader.reading.close()

    async def let_go(self, index: int) -> None:
        """A stage opens no sessions, or is over: nothing is to be held for it."""
        for reader in self._readers[index]:
            await reader.reading.close()

    def started(self, index: int) -> None:
        """A stage is about to open its own streams or sessions: its models read nothing for others from now on. (What they read for it
        ended with the last stage that it waited for.)"""
        for engine in self._of(index):
            engine.writes += 1
            engine.call_off()
        self._written[index].writing = True
        self._wake()

    def saw(self, event: Event) -> None:
        """A stage has told something."""
        if not self._engines:
            return  # as of most wirings: their every piece comes by here
        if isinstance(event, Delta):
            written = self._written[event.stage]
            if event.text:
                written.more(event.text)
                for reader in self._all():
                    if reader.written is written and reader.is_due(written):
                        reader.wake.set()
        elif isinstance(event, StageRestarted):
            self._written[event.stage].void()
            for reader in self._all():
                reader.due = min(reader.due, BYTES * FIRST)

    def finished(self, index: int, text: str) -> None:
        """A stage hands this on. Who waits for another stage still, may read all of it now; who does not, begins himself."""
        written = self._written[index]
        written.writing, written.whole = False, text
        for engine in self._of(index):
            engine.writes -= 1
        for stage, readers in zip(self._stages, self._readers, strict=True):
            reads = [self._written[branch.reads] for branch in branches(stage) if branch.reads is not None]
            if all(each.whole is not None for each in reads):
                for reader in readers:
                    reader.leave()
        self._wake()

    def report(self, index: int) -> PrefillReport | None:
        """What was read early for a stage; None where nothing can be."""
        readers = self._readers[index]
        if not readers:
            return None
        return PrefillReport(sum(reader.prepared for reader in readers), sum(reader.failed for reader in readers))

    def _all(self) -> Iterator[_Reader]:
        return (reader for readers in self._readers for reader in readers)

    def _of(self, index: int) -> list[_Engine]:
        """The engines of a stage's models, as far as they read early."""
        models = dict.fromkeys(branch.model for branch in branches(self._stages[index]))
        return [self._engines[model] for model in models if model in self._engines]

    def _wake(self) -> None:
        """Something else than text is new: all look again."""
        for reader in self._all():
            reader.due = 0
            reader.wake.set()


class _Written:
    """What a stage has written by now. size: bytes of it. ended: it may be whole. writing: it has begun, and not ended. whole: what it has
    handed on."""

    __slots__ = ("_marks", "_parts", "ended", "size", "whole", "writing")

    def __init__(self, stage: Stage, catalog: Catalog) -> None:
        found = dict.fromkeys(catalog[branch.model].reasoning for branch in branches(stage))
        self._marks: Sequence[tuple[str, str] | None] = [marks for marks in found if marks is not None] or [None]
        self.void()
        self.writing = False
        self.whole: str | None = None

    def void(self) -> None:
        """It begins anew."""
        self._parts: list[str] = []
        self.size = 0
        self.ended = False

    def more(self, text: str) -> None:
        self._parts.append(text)
        self.size += len(text.encode(errors="replace"))
        self.ended = ENDS.search(text) is not None or (self.ended and text.isspace())

    def answer(self, *, ended: bool) -> str:
        """What it hands on, as far as that is sure. ended: if it is whole."""
        if self.whole is not None:
            return self.whole
        text = "".join(self._parts)
        for marks in self._marks:
            text = partial_answer(text, marks, ended=ended)
        return text


class _Engine:
    """A model. turn: held for one call. writes: stages of this run in which it writes now. broken: it is left alone."""

    __slots__ = ("_flight", "broken", "turn", "writes")

    def __init__(self) -> None:
        self.turn = anyio.Lock()
        self.writes = 0
        self.broken = False
        self._flight: anyio.CancelScope | None = None

    async def read(self, reading: Reading, messages: Sequence[Message], *, ended: bool) -> int:
        """As `Reading.prepare`; 0 also where it was called off."""
        try:
            with anyio.CancelScope() as self._flight:
                return await reading.prepare(messages, ended=ended)
        finally:
            self._flight = None
        return 0

    def call_off(self) -> None:
        if self._flight is not None:
            self._flight.cancel()


class _Reader:
    """A branch of a stage that waits. place: its index there. written: what it will read, None if it reads the question only. due: bytes
    of that with which it is worth reading again. prepared, failed: see `events.PrefillReport`."""

    __slots__ = (
        "_branch", "_engine", "_job", "_native", "_over", "_told", "due", "failed", "place", "prepared", "reading", "wake", "written",
    )  # fmt: skip

    def __init__(
        self,
        engine: _Engine,
        reading: Reading,
        job: Job,
        branch: Branch,
        place: int,
        native: bool,
        written: _Written | None,
    ) -> None:
        self._engine = engine
        self.reading = reading
        self.place = place
        self._job = job
        self._branch = branch
        self._native = native
        self._over = anyio.CancelScope()
        self._told: tuple[Sequence[Message], bool] = (), False
        self.written = written
        self.due: float = 0
        self.failed = self.prepared = 0
        self.wake = anyio.Event()
        self.wake.set()

    async def run(self) -> None:
        """Until its stage begins, or there is no more to read."""
        with self._over:
            while not self._engine.broken:
                await self.wake.wait()
                self.wake = anyio.Event()
                async with self._engine.turn:
                    if self._may():
                        try:
                            await self._read()
                        except CapabilityMissing:
                            self._engine.broken = True
                        except Exception:  # noqa: BLE001 - nothing that only saves time may cost an answer
                            self._engine.broken = True
                            self.failed = 1

    def leave(self) -> None:
        """Read no more, and let go of what is under way."""
        self._over.cancel()

    def is_due(self, written: _Written) -> bool:
        """Whether there is enough of it to read again, or it may be whole."""
        return written.size >= self.due or written.ended

    def _may(self) -> bool:
        written = self.written
        if self._over.cancel_called or self._engine.broken or self._engine.writes:
            return False  # it may have been woken before it was told to leave
        if written is None or written.whole is not None:
            return True
        return written.writing and self.is_due(written)

    async def _read(self) -> None:
        written, answers, at, worth = self.written, {}, 0, 0
        ended = written is None or written.whole is not None or written.ended
        if written is not None:
            assert self._branch.reads is not None
            at = written.size
            answers[self._branch.reads] = written.answer(ended=ended)
        told = tuple(replace(self._job, previous=answers).conversation(self._branch, native=self._native))
        if (told, ended) != self._told:
            worth = await self._engine.read(self.reading, told, ended=ended)
            if worth:
                self._told = told, ended
                self.prepared += 1
        if written is not None:
            self.due = min(at, written.size) + BYTES * (worth or FIRST)


async def _unheard(event: Event) -> None:
    return
