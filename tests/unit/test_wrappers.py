"""Guards around backends: what is asked again, what is counted, and that abilities stay what they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from backends import errors
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.protocol import (
    EmbeddingBackend,
    ForwardingBackend,
    RawBackend,
    TextBackend,
    TokenBackend,
    TokenizerBackend,
)
from backends.types import Message, TextDelta, TextEvent, TextRequest
from backends.wrappers import BreakerSettings, Guard, Policy, State, Watcher, guard_of, guarded, inner
from backends.wrappers.causes import CAUSES, cause, verdict

pytestmark = pytest.mark.anyio
ASK = TextRequest((Message("user", "Why?"),))
ABILITIES = (TextBackend, TokenBackend, RawBackend, ForwardingBackend, EmbeddingBackend, TokenizerBackend)


class Ear(Watcher):
    """Keeps all it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def failed(self, model: str, cause: str) -> None:
        self.heard.append(("failed", cause))

    def retried(self, model: str, cause: str) -> None:
        self.heard.append(("retried", cause))

    def unaffordable(self, model: str) -> None:
        self.heard.append(("unaffordable",))

    def hedged(self, model: str) -> None:
        self.heard.append(("hedged",))

    def hedge_won(self, model: str) -> None:
        self.heard.append(("hedge won",))

    def turned(self, model: str, state: State) -> None:
        self.heard.append(("turned", state))

    def count(self, *what: str) -> int:
        return self.heard.count(what)


class TextOnly:
    """The least that a backend can be. plan: what each entering does: an error, or None for an answer; then the last one for ever.

    after: seconds before the n-th stream's first event. broken: it breaks off behind its first event.
    """

    name = "m"

    def __init__(self, *plan: errors.BackendError | None, after: Sequence[float] = (), broken: bool = False) -> None:
        self.plan = list(plan) or [None]
        self.after = list(after)
        self.broken = broken
        self.entered = self.left = self.cancelled = 0

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        error = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        number = self.entered
        self.entered += 1
        try:
            if error is not None:
                raise error
            yield self._events(number)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.left += 1

    async def _events(self, number: int) -> AsyncIterator[TextEvent]:
        if number < len(self.after):
            await anyio.sleep(self.after[number])
        yield TextDelta(f"answer {number}")
        if self.broken:
            raise errors.BackendUnavailable("m", "It broke off.")

    async def start(self) -> None: ...
    async def ready(self) -> None: ...
    async def aclose(self) -> None: ...


def unreached(message: str = "It can't be reached.") -> errors.BackendError:
    error = errors.BackendUnavailable("m", message)
    error.repeatable = True
    return error


def full(retry_after: float | None) -> errors.BackendError:
    error = errors.BackendOverloaded("m", "It is full.", retry_after)
    error.repeatable = retry_after is not None
    return error


def made(backend: Any, ear: Ear | None = None, clock: Any = None, **policy: Any) -> Any:
    extra = {} if clock is None else {"clock": clock}
    return guarded(backend, Guard("m", Policy(**{"pause": 0.001, **policy}), ear, **extra))


async def said(backend: Any) -> str:
    with anyio.fail_after(5):
        async with backend.stream(ASK) as events:
            return "".join([event.text async for event in events if isinstance(event, TextDelta)])


# Abilities


@pytest.mark.parametrize(
    "bare",
    [TextOnly(), FakeBackend("m"), OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url="http://127.0.0.1:9/v1"))],
    ids=lambda bare: type(bare).__name__,
)
def test_abilities_are_those_of_the_backend_inside(bare: Any) -> None:
    wrapped = made(bare)
    assert wrapped is not bare and inner(wrapped) is bare and inner(bare) is bare
    for ability in ABILITIES:
        assert isinstance(wrapped, ability) == isinstance(bare, ability), ability
    assert wrapped.name == "m"


def test_what_a_backend_has_besides_is_found_through_the_guard() -> None:
    bare = FakeBackend("m")
    assert made(bare).counters is bare.counters
    with pytest.raises(AttributeError):
        made(bare).nothing_of_that_name


def test_a_new_guard_replaces_the_old_one() -> None:
    bare, first, second = FakeBackend("m"), Guard("m", Policy()), Guard("m", Policy())
    again = guarded(guarded(bare, first), second)
    assert inner(again) is bare and guard_of(again) is second and guard_of(bare) is None


def test_every_error_has_a_cause_of_its_own_and_a_verdict() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    found = {kind: cause(kind("m", "It is so.")) for kind in kinds}
    assert len(set(found.values())) == len(kinds), found
    assert set(found.values()) | {"crashed"} == set(CAUSES)
    assert {kind.__name__ for kind in kinds if verdict(kind("m", "")) == "fault"} == {
        "BackendError",
        "BackendUnavailable",
        "BackendTimeout",
    }
    assert (cause(ValueError()), verdict(ValueError())) == ("crashed", "fault")


# Asking again


async def test_what_could_not_be_reached_is_asked_again() -> None:
    bare, ear = TextOnly(unreached(), unreached(), None), Ear()
    assert await said(made(bare, ear)) == "answer 2"
    assert bare.entered == bare.left == 3
    assert ear.count("retried", "unavailable") == 2


async def test_no_more_often_than_allowed_and_then_with_the_last_error() -> None:
    bare, ear = TextOnly(unreached("one"), unreached("two"), unreached("three")), Ear()
    with pytest.raises(errors.BackendUnavailable, match="three"):
        await said(made(bare, ear, retries=2))
    assert bare.entered == 3 and ear.count("failed", "unavailable") == 3


@pytest.mark.parametrize(
    "error",
    [
        errors.BackendUnavailable("m", "It died, and may have begun."),
        errors.BackendTimeout("m", "It is slow."),
        full(None),
        full(60.0),
        errors.ContextTooLong("m", "It is long."),
        errors.RequestRejected("m", "It is wrong."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_have_begun_or_would_take_long_is_not_asked_again(error: errors.BackendError) -> None:
    bare = TextOnly(error)
    with pytest.raises(type(error)):
        await said(made(bare))
    assert bare.entered == 1


async def test_retry_after_is_waited_for() -> None:
    bare = TextOnly(full(0.2), None)
    began = anyio.current_time()
    assert await said(made(bare)) == "answer 1"
    assert anyio.current_time() - began >= 0.2


async def test_nothing_is_repeated_behind_the_first_event() -> None:
    bare = TextOnly(broken=True)
    with pytest.raises(errors.BackendUnavailable, match="broke off"):
        await said(made(bare))
    assert bare.entered == 1


async def test_no_pause_is_begun_that_the_deadline_would_cut() -> None:
    bare, ear = TextOnly(full(1.0)), Ear()
    began = anyio.current_time()
    with anyio.move_on_after(0.5), pytest.raises(errors.BackendOverloaded):
        await said(made(bare, ear))
    assert bare.entered == 1 and anyio.current_time() - began < 0.3 and not ear.count("unaffordable")


async def test_repetitions_stay_within_the_budget_however_much_fails() -> None:
    """At most a fifth of the requests, and the reserve."""
    bare, ear = TextOnly(unreached()), Ear()
    backend = made(bare, ear, share=0.2, reserve=3, retries=5, pause=0.0, breaker=None)
    for _ in range(100):
        with pytest.raises(errors.BackendUnavailable):
            await said(backend)
    assert 100 + 20 <= bare.entered <= 100 + 20 + 3
    assert ear.count("unaffordable") >= 70


async def test_questions_with_one_answer_are_asked_again_too() -> None:
    class Embeds(TextOnly):
        async def embed(self, fields: Any) -> dict[str, Any]:
            self.entered += 1
            if self.entered == 1:
                raise unreached()
            return {"fields": fields}

    assert await made(Embeds()).embed({"input": "x"}) == {"fields": {"input": "x"}}


async def test_a_server_that_is_not_there_is_asked_three_times_over_a_real_socket() -> None:
    """From the operating system's refusal to `repeatable`."""
    ear = Ear()
    bare = OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(errors.BackendUnavailable):
        await said(made(bare, ear))
    assert ear.count("retried", "unavailable") == 2
    await bare.aclose()


# The breaker


async def test_a_backend_that_keeps_failing_is_left_alone_and_tried_again_later() -> None:
    bare, ear, now = TextOnly(errors.BackendUnavailable("m", "No.")), Ear(), [100.0]
    backend = made(bare, ear, lambda: now[0], breaker=BreakerSettings(least=4, pause=5))
    for _ in range(4):
        with pytest.raises(errors.BackendUnavailable):
            await said(backend)
    with pytest.raises(errors.CircuitOpen) as caught:
        await said(backend)
    assert bare.entered == 4 and caught.value.retry_after == 5
    with pytest.raises(errors.CircuitOpen):
        await backend.ready()
    now[0] += 5
    await backend.ready()
    bare.plan = [None]
    assert await said(backend) == "answer 4"
    assert [state for what, *rest in ear.heard for state in rest if what == "turned"] == ["open", "half_open", "closed"]
    assert ear.count("failed", "circuit_open") == 1


async def test_the_first_event_of_a_trial_is_enough() -> None:
    """A long answer must not keep the others out until it is whole."""
    bare, now = TextOnly(errors.BackendUnavailable("m", "No.")), [100.0]
    backend = made(bare, clock=lambda: now[0], breaker=BreakerSettings(least=1))
    with pytest.raises(errors.BackendUnavailable):
        await said(backend)
    now[0] += 5
    bare.plan = [None]
    async with backend.stream(ASK) as events:
        with pytest.raises(errors.CircuitOpen):
            await said(backend)
        await anext(events)
        assert await said(backend) == "answer 2"


async def test_a_client_that_leaves_says_nothing_about_the_backend() -> None:
    bare = TextOnly(after=[9.0] * 50)
    backend = made(bare, breaker=BreakerSettings(least=1))
    for _ in range(20):
        with anyio.move_on_after(0.001):
            await said(backend)
    assert guard_of(backend).state == "closed" and bare.cancelled == 20  # type: ignore[union-attr]


async def test_another_models_error_passing_through_is_not_counted() -> None:
    backend = made(TextOnly(), breaker=BreakerSettings(least=1))
    with pytest.raises(errors.BackendUnavailable):
        async with backend.stream(ASK):
            raise errors.BackendUnavailable("other", "Not me.")
    assert guard_of(backend).state == "closed"  # type: ignore[union-attr]


@pytest.mark.parametrize("drops", [False, True], ids=["it ends the run", "it is dropped from its group"])
async def test_a_failing_session_is_counted_once_whoever_catches_it(drops: bool) -> None:
    faults = (Fault(on="token", of="session", after=1),)
    ear = Ear()
    backend = made(FakeBackend("m", FakeSettings(faults=faults)), ear)
    try:
        async with backend.open(ASK.messages, k=4) as session:
            await session.step(())
            try:
                await session.step((65,))
            except errors.BackendUnavailable:
                if not drops:
                    raise
    except errors.BackendUnavailable:
        assert not drops
    assert ear.heard == [("failed", "unavailable")]


async def test_a_frozen_session_whose_caller_gives_up_is_counted() -> None:
    ear = Ear()
    backend = made(FakeBackend("m", FakeSettings(faults=(Fault(on="token", of="session", action="hang"),))), ear)
    with pytest.raises(errors.BackendTimeout):
        async with backend.open(ASK.messages, k=4) as session:
            with anyio.move_on_after(0.01):
                await session.step(())
            raise errors.BackendTimeout("m", "It took too long.")
    assert ear.heard == [("failed", "timeout")]


async def test_sessions_are_what_they_were() -> None:
    bare = FakeBackend("m")
    wrapped = made(bare)
    async with bare.open(ASK.messages, k=8) as one, wrapped.open(ASK.messages, k=8) as other:
        assert one.prompt_tokens == other.prompt_tokens
        for append in ((), (65, 66), (67,)):
            assert (await one.step(append)).ids.tolist() == (await other.step(append)).ids.tolist()
        await one.rewind(1), await other.rewind(1)
        tops = zip(await one.score((70, 71)), await other.score((70, 71)), strict=True)
        assert all(a.logprobs.tolist() == b.logprobs.tolist() for a, b in tops)
        assert (await one.lookup([5])).tolist() == (await other.lookup([5])).tolist()
        assert other.usage.completion_tokens == 4
    assert bare.counters.sessions == 0


# Hedging


async def test_a_silent_stream_is_asked_twice_and_the_quicker_one_is_heard() -> None:
    bare, ear = TextOnly(after=[30.0, 0.0]), Ear()
    assert await said(made(bare, ear, hedge_after=0.02)) == "answer 1"
    assert bare.entered == bare.left == 2 and bare.cancelled == 1, "the other one is cancelled"
    assert ear.heard == [("hedged",), ("hedge won",)]


async def test_a_quick_stream_is_not_hedged() -> None:
    bare, ear = TextOnly(), Ear()
    assert await said(made(bare, ear, hedge_after=0.5)) == "answer 0"
    assert bare.entered == 1 and not ear.heard


async def test_the_first_may_still_win() -> None:
    bare, ear = TextOnly(after=[0.1, 30.0]), Ear()
    assert await said(made(bare, ear, hedge_after=0.02)) == "answer 0"
    assert bare.left == 2 and ear.heard == [("hedged",)]


async def test_hedging_is_paid_from_the_budget() -> None:
    bare, ear = TextOnly(after=[0.03] * 30), Ear()
    backend = made(bare, ear, hedge_after=0.001, share=0.0, reserve=2.0)
    for _ in range(6):
        await said(backend)
    assert ear.count("hedged") == 2 and bare.entered == 8


async def test_if_both_fail_the_first_error_is_told() -> None:
    first, second = errors.BackendUnavailable("m", "first"), errors.BackendUnavailable("m", "second")

    class Slow(TextOnly):
        async def _events(self, number: int) -> AsyncIterator[TextEvent]:
            await anyio.sleep(0.05)
            raise (first, second)[number]
            yield

    with pytest.raises(errors.BackendUnavailable, match="first"):
        await said(made(Slow(), hedge_after=0.01))


async def test_one_that_fails_leaves_the_other_its_time() -> None:
    class Uneven(TextOnly):
        async def _events(self, number: int) -> AsyncIterator[TextEvent]:
            await anyio.sleep(0.1 if number else 0.05)
            if not number:
                raise errors.BackendUnavailable("m", "The first fails.")
            yield TextDelta("the second answers")

    assert await said(made(Uneven(), hedge_after=0.01)) == "the second answers"


async def test_a_hedged_stream_that_breaks_off_raises_where_it_breaks() -> None:
    texts = []
    with pytest.raises(errors.BackendUnavailable, match="broke off"):
        async with made(TextOnly(broken=True), hedge_after=1.0).stream(ASK) as events:
            async for event in events:
                texts.append(event.text)  # type: ignore[union-attr]
    assert texts == ["answer 0"]


async def test_leaving_a_hedged_block_ends_both() -> None:
    bare = TextOnly(after=[30.0, 30.0])
    with anyio.move_on_after(0.1):
        await said(made(bare, hedge_after=0.01))
    assert bare.entered == bare.left == 2 and bare.cancelled == 2


async def test_a_stream_without_any_event_is_an_error_not_a_hang() -> None:
    class Empty(TextOnly):
        async def _events(self, number: int) -> AsyncIterator[TextEvent]:
            return
            yield

    with pytest.raises(errors.BackendUnavailable, match="without an answer"):
        await said(made(Empty(), hedge_after=1.0))
