"""Guards around backends: what is asked again, what is counted, and that abilities stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from reads_early import ReadsEarly
from wrapped import ABILITIES, ASK, Ear, TextOnly, full, made, said, unreached

from backends import errors
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.types import Message
from backends.wrappers import BreakerSettings, Guard, Policy, guard_of, guarded, inner
from backends.wrappers.causes import CAUSES, cause, verdict

pytestmark = pytest.mark.anyio


class Prepares(ReadsEarly):
    """Fails at reading early."""

    asked = 0

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        self.asked += 1
        raise unreached()


# Abilities


@pytest.mark.parametrize(
    "bare",
    [
        TextOnly(),
        FakeBackend("m"),
        Prepares("m"),
        OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url="http://127.0.0.1:9/v1")),
    ],
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


async def test_a_refusal_in_a_session_hides_no_later_fault() -> None:
    """Its caller may go on without what there was no room for."""
    ear = Ear()
    fault = Fault(on="token", of="session", after=1)
    backend = made(FakeBackend("m", FakeSettings(context=30, faults=(fault,))), ear)
    with pytest.raises(errors.BackendUnavailable):
        async with backend.open(ASK.messages, k=4) as session:
            await session.step(())
            with pytest.raises(errors.ContextTooLong):
                await session.score([65] * 40)
            await session.step((65,))
    assert ear.heard == [("failed", "context_too_long"), ("failed", "unavailable")]
    guard = guard_of(backend)
    assert guard is not None
    assert guard.state == "closed"


async def test_a_frozen_session_whose_caller_gives_up_is_counted() -> None:
    ear = Ear()
    backend = made(FakeBackend("m", FakeSettings(faults=(Fault(on="token", of="session", action="hang"),))), ear)
    with pytest.raises(errors.BackendTimeout):
        async with backend.open(ASK.messages, k=4) as session:
            with anyio.move_on_after(0.01):
                await session.step(())
            raise errors.BackendTimeout("m", "It took too long.")
    assert ear.heard == [("failed", "timeout")]


async def test_reading_early_is_neither_repeated_nor_counted_nor_asked_of_who_is_left_alone() -> None:
    ear = Ear()
    bare = Prepares("m", FakeSettings(answer="Hi", faults=(Fault(on="enter"),)))
    wrapped = made(bare, ear, retries=2, breaker=BreakerSettings(least=2))
    reading = wrapped.reading(k=4)
    for _ in range(5):
        with pytest.raises(errors.BackendUnavailable):
            await reading.prepare(ASK.messages, ended=True)
    assert bare.asked == 5 and ear.heard == [] and guard_of(wrapped).state == "closed"
    for _ in range(2):
        with pytest.raises(errors.BackendUnavailable):
            await said(wrapped)
    assert guard_of(wrapped).state == "open"
    assert await reading.prepare(ASK.messages, ended=True) == 0 and bare.asked == 5


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
