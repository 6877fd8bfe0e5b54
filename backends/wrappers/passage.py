"""One guarded use of a backend: past the breaker, repeated where that is safe, and its end told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio

from backends.errors import BackendError, BackendTimeout, CapabilityMissing
from backends.protocol import DraftingSession, RoomySession, Session, WideningSession
from backends.types import LogProbs, SomeIds, TextEnd, TextEvent, TopK, Usage
from backends.wrappers.causes import verdict
from backends.wrappers.guard import Guard
from backends.wrappers.watcher import Call, Use

T = TypeVar("T")


class Passage(Generic[T]):
    """A block of a backend (`stream`, `open`, `forward`) under guard. Entered and left once.

    Repeated is only entering: nothing of an answer was seen by then. Whatever comes later is the caller's.
    """

    __slots__ = ("_block", "_call", "_guard", "_make", "_settled", "_trial", "_use", "_value")

    def __init__(self, guard: Guard, use: Use, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._guard = guard
        self._use = use
        self._make = make
        self._trial = False
        self._settled = False
        self._call: Call | None = None

    async def __aenter__(self) -> T:
        guard = self._guard
        guard.budget.deposit()
        attempt = 0
        failure: BaseException | None = None
        while True:
            self._trial = guard.admit(failure)
            self._call = guard.watcher.call(guard.name, self._use, attempt)
            try:
                self._block = self._make()
                value = await self._block.__aenter__()
            except BaseException as error:
                guard.settle(self._trial, error)
                if self._call is not None:
                    self._call.ended(error, None)
                wait = guard.again_in(error, attempt)
                if wait is None:
                    raise
                attempt += 1
                failure = error
            else:
                self._value = self._watched(value)
                return self._value
            await anyio.sleep(wait)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            swallowed = await self._block.__aexit__(kind, error, trace)
        except BaseException as raised:
            self._end(raised)
            raise
        self._end(error)
        return swallowed

    @property
    def name(self) -> str:
        """Of the model."""
        return self._guard.name

    def resume(self) -> None:
        """Something will be sent for this use."""
        if self._call is not None:
            self._call.resumed()

    def evidence(self) -> None:
        """The backend works: it has given something."""
        if self._trial:
            self._guard.settle(True, None)
            self._trial = False
        if self._call is not None:
            self._call.first()

    def erred(self, error: BackendError) -> None:
        """The backend failed inside the block; this counts, whatever the block ends with.

        A refusal that is no fault (there was no room) leaves open what comes later: its caller may go on without what was refused.
        """
        if not self._settled:
            self._settled = verdict(error) == "fault"
            self._guard.settle(self._trial, error)
            self._trial = False

    def _watched(self, value: T) -> T:
        """The value, with an eye on it where one is needed."""
        watched: Any = value
        if self._use == "session":
            watched = GuardedSession(watched, self)
        elif self._use == "forward":
            if self._trial or self._call is not None:
                self.evidence()  # there is a status: 200
        elif self._trial or self._call is not None:
            watched = _Events(watched, self)
        result: T = watched
        return result

    def _end(self, error: BaseException | None) -> None:
        session = self._value if isinstance(self._value, GuardedSession) else None
        if session is not None and session.steps:
            self._guard.watcher.stepped(self._guard.name, session.steps, session.seconds)
        if not self._settled:
            self._settled = True
            if error is None:
                if session is not None and session.cut:
                    self._guard.withdraw(self._trial)  # its caller went on without a step
                else:
                    self._guard.settle(self._trial, None)
            elif self._is_ours(error, session):
                self._guard.settle(self._trial, error)
            else:
                self._guard.withdraw(self._trial)
        if self._call is not None:
            self._call.ended(error, self._usage())

    def _is_ours(self, error: BaseException, session: GuardedSession | None) -> bool:
        if not isinstance(error, BackendError) or error.model != self._guard.name:
            return False
        # A session's own errors were seen where it raised them. Left is that its caller would not wait any longer; and the same
        # model may be in a group twice.
        return session is None or (session.cut and isinstance(error, BackendTimeout))

    def _usage(self) -> Usage | None:
        value: Any = self._value
        if isinstance(value, GuardedSession):
            return value.usage
        if isinstance(value, _Events):
            return value.usage
        return value.usage if self._use == "forward" and isinstance(value.usage, Usage) else None


class _Events:
    """The events of a stream, watched."""

    __slots__ = ("_events", "_passage", "_seen", "usage")

    def __init__(self, events: AsyncIterator[TextEvent], passage: Passage[Any]) -> None:
        self._events = events
        self._passage = passage
        self._seen = False
        self.usage: Usage | None = None

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> TextEvent:
        event = await anext(self._events)
        if not self._seen:
            self._seen = True
            self._passage.evidence()
        if isinstance(event, TextEnd):
            self.usage = event.usage
        return event


class GuardedSession:
    """A session whose failures are counted. See `backends.protocol.Session`.

    steps, seconds: forward passes so far, and the time their caller waited for them. cut: one was called off.
    """

    __slots__ = ("_passage", "_session", "_written", "cut", "seconds", "steps")

    def __init__(self, session: Session, passage: Passage[Any]) -> None:
        self._session = session
        self._passage = passage
        self._written = 0
        self.steps = 0
        self.seconds = 0.0
        self.cut = False

    @property
    def prompt_tokens(self) -> int:
        return self._session.prompt_tokens

    @property
    def context(self) -> int | None:
        return self._session.context if isinstance(self._session, RoomySession) else None

    @property
    def usage(self) -> Usage:
        """What it read and was told."""
        return Usage(self._session.prompt_tokens, self._written)

    async def step(self, append: Sequence[int] = ()) -> TopK:
        self._passage.resume()
        top = await self._passed(self._session.step(append))
        self._written += len(append)
        return top

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        self._passage.resume()
        tops = await self._passed(self._session.score(draft))
        self._written += len(draft)
        return tops

    async def lookup(self, ids: SomeIds) -> LogProbs:
        self._passage.resume()
        try:
            return await self._session.lookup(ids)
        except CapabilityMissing:
            raise  # some servers can't, and callers do without
        except BackendError as error:
            self._passage.erred(error)
            raise

    @property
    def draft_noise(self) -> float | None:
        return self._session.draft_noise if isinstance(self._session, DraftingSession) else None

    @property
    def reads_singly(self) -> bool:
        return not isinstance(self._session, DraftingSession) or self._session.reads_singly

    @property
    def kept_steps(self) -> int:
        return self._session.kept_steps if isinstance(self._session, DraftingSession) else 0

    async def recall(self, back: int, ids: SomeIds) -> LogProbs:
        if not isinstance(self._session, DraftingSession):
            raise CapabilityMissing(self._passage.name, f"Model {self._passage.name!r} keeps nothing of a draft.")
        self._passage.resume()
        try:
            return await self._session.recall(back, ids)
        except CapabilityMissing:
            raise  # as in `lookup`
        except BackendError as error:
            self._passage.erred(error)
            raise

    def widen(self, k: int) -> bool:
        return isinstance(self._session, WideningSession) and self._session.widen(k)

    async def rewind(self, n: int) -> None:
        await self._session.rewind(n)
        self._written -= n

    async def close(self) -> None:
        """Called before the block's end, after a step was called off: its caller has given it up for being slow."""
        if self.cut:
            name = self._passage.name
            self._passage.erred(BackendTimeout(name, f"Model {name!r} was too slow for its group."))
        await self._session.close()

    async def _passed(self, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            result = await call
        except BackendError as error:
            self._passage.erred(error)
            raise
        except BaseException:
            self.cut = True
            raise
        self.seconds += time.perf_counter() - began
        if not self.steps:
            self._passage.evidence()
        self.steps += 1
        return result


async def ask(guard: Guard, make: Callable[[], Awaitable[T]]) -> T:
    """One guarded question with one answer."""
    guard.budget.deposit()
    attempt = 0
    failure: BaseException | None = None
    while True:
        trial = guard.admit(failure)
        call = guard.watcher.call(guard.name, "ask", attempt)
        try:
            answer = await make()
        except BaseException as error:
            guard.settle(trial, error)
            if call is not None:
                call.ended(error, None)
            wait = guard.again_in(error, attempt)
            if wait is None:
                raise
            attempt += 1
            failure = error
        else:
            guard.settle(trial, None)
            if call is not None:
                call.ended(None, None)
            return answer
        await anyio.sleep(wait)
