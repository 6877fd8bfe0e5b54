"""The engine over scripted models: what each stage reads, what comes out when, what a fault and a walk-away leave behind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from backends.catalog import Catalog, Entry
from backends.errors import BackendError, BackendUnavailable
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Message, Sampling
from strategies.engine import Options, run
from strategies.engine.events import Delta, Event, Finished, StageFinished, StageStarted
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping(
    "test",
    {
        "default": {
            "solver": "{question}",
            "reviewer": "Q: {question} A: {answer} review",
            "verifier": "Q: {question} A: {answer} verify",
        }
    },
)
ASK = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("assistant", "Yes?"),
    Message("user", "six times seven"),
)


class Models:
    """Fake models by name, and what each was told."""

    def __init__(self, **settings: FakeSettings) -> None:
        self.told: dict[str, list[Sequence[Message]]] = {}
        self.backends = {
            name: FakeBackend(name, value, answer=self._answer(name, value)) for name, value in settings.items()
        }
        self.catalog = Catalog({name: Entry(backend) for name, backend in self.backends.items()})

    def _answer(self, name: str, settings: FakeSettings) -> Any:
        def answer(messages: Sequence[Message]) -> str:
            self.told.setdefault(name, []).append(tuple(messages))
            return settings.answer

        return answer

    async def events(self, wiring: str, messages: Sequence[Message] = ASK, **options: Any) -> list[Event]:
        what = plan(parse(wiring).topology, self.catalog)
        async with run(what, messages, Options(prompts=PROMPTS, **options), self.catalog) as events:
            return [event async for event in events]

    async def answer(self, wiring: str, **options: Any) -> str:
        events = await self.events(wiring, **options)
        last = next(e for e in events if isinstance(e, Finished)).stages[-1].stage
        return "".join(e.text for e in events if isinstance(e, Delta) and e.stage == last)

    def assert_nothing_left(self) -> None:
        for backend in self.backends.values():
            counters = backend.counters
            assert (counters.streams, counters.sessions, counters.waiting) == (0, 0, 0)
            assert counters.opened == counters.closed


def said(text: str, **settings: Any) -> FakeSettings:
    return FakeSettings(answer=text, **settings)


async def test_a_single_model_reads_the_conversation_and_answers() -> None:
    models = Models(a=said("forty-two"))
    events = await models.events("a")
    assert isinstance(events[0], StageStarted)
    assert isinstance(events[-1], Finished)
    assert isinstance(events[-2], StageFinished)
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "forty-two"
    assert models.told["a"] == [ASK]
    assert events[-1].finish_reason == "stop"
    assert events[-1].usage.completion_tokens > 0
    models.assert_nothing_left()


async def test_every_stage_reads_the_whole_conversation_and_the_answer_before() -> None:
    """System prompt and history stay; the role's instruction carries question and previous answer."""
    models = Models(a=said("one"), b=said("two"), c=said("three"))
    assert await models.answer("a>b>c") == "three"
    assert models.told["a"] == [ASK]
    assert models.told["b"] == [(*ASK[:-1], Message("user", "Q: six times seven A: one review"))]
    assert models.told["c"] == [(*ASK[:-1], Message("user", "Q: six times seven A: two verify"))]


async def test_a_group_that_agrees_writes_what_all_would_write() -> None:
    models = Models(
        a=said("中国 is 42 👍"), b=said("中国 is 42 👍", seed=1), c=said("中国 is 42 👍", words=("中", " is", "42"))
    )
    for wiring in ("a|b", "a|c", "a|b|c", "a*0.2|c*5"):
        assert await models.answer(wiring) == "中国 is 42 👍"
    models.assert_nothing_left()


async def test_order_of_members_never_shows() -> None:
    models = Models(
        a=said("the first answer"), b=said("another one", seed=3), c=said("the third", words=(" th", "ird"))
    )
    texts = [await models.answer("|".join(order)) for order in itertools.permutations("abc")]
    assert len(set(texts)) == 1
    assert texts[0]


async def test_weights_decide() -> None:
    models = Models(a=said("left is right"), b=said("up is down", words=("up", " is", " do")))
    assert await models.answer("a*1|b*0.000001") == "left is right"
    assert await models.answer("a*0.000001|b*1") == "up is down"


async def test_nested_wirings_run_what_they_need_once() -> None:
    """`(x>a|b)|c`: x is asked once; a and b read it, c reads the question only."""
    models = Models(x=said("hint"), a=said("done"), b=said("done"), c=said("done"))
    assert await models.answer("(x>a|b)|c") == "done"
    assert len(models.told["x"]) == 1
    assert "hint" in models.told["a"][0][-1].content
    assert "hint" in models.told["b"][0][-1].content
    assert models.told["c"][0] == ASK
    assert await models.answer("(a>b)|c>x") == "hint"


async def test_independent_stages_run_side_by_side() -> None:
    models = Models(a=said("one", first_delay=0.6), b=said("two", first_delay=0.6), c=said("x"), d=said("x"))
    began = anyio.current_time()
    await models.answer("(a>c)|(b>d)")
    assert anyio.current_time() - began < 1.15


async def test_the_first_token_comes_before_the_last_is_decoded() -> None:
    """True streaming, in a text stage and in a group: when the first delta is read the models are still writing."""
    models = Models(
        a=said("one two three four five six seven", delay=0.02), b=said("one two three four five six seven", delay=0.02)
    )
    for wiring in ("a", "a|b"):
        what = plan(parse(wiring).topology, models.catalog)
        async with run(what, ASK, Options(prompts=PROMPTS), models.catalog) as events:
            async for event in events:
                if isinstance(event, Delta):
                    open_now = models.backends["a"].counters
                    assert open_now.streams + open_now.sessions == 1
                    break
    models.assert_nothing_left()


async def test_reasoning_is_cut_from_what_is_handed_on() -> None:
    models = Models(a=said("<think>secret</think>plain"), b=said("end"))
    models.catalog = Catalog(
        {"a": Entry(models.backends["a"], reasoning=("<think>", "</think>")), "b": models.catalog["b"]}
    )
    assert await models.answer("a>b") == "end"
    assert models.told["b"][0][-1].content == "Q: six times seven A: plain verify"


async def test_budgets_and_stop_strings() -> None:
    models = Models(a=said("one two three four"), b=said("one two three four"))
    events = await models.events("a|b", sampling=Sampling(max_tokens=2))
    assert isinstance(events[-1], Finished)
    assert events[-1].finish_reason == "length"
    assert [b.usage.completion_tokens for b in events[-1].stages[0].branches] == [2, 2]
    assert await models.answer("a|b", sampling=Sampling(stop=(" thr",))) == "one two"
    assert await models.answer("a", sampling=Sampling(stop=("e four",))) == "one two thre"
    events = await models.events("a>b", stage_max_tokens=1, sampling=Sampling(stop=("two",)))
    reports = [e.report for e in events if isinstance(e, StageFinished)]
    assert reports[0].finish_reason == "length"
    assert "two" not in "".join(e.text for e in events if isinstance(e, Delta) and e.stage == 1)


async def test_temperature_and_seed_hold_for_the_pooled_distribution() -> None:
    models = Models(a=said("the answer is one", confidence=0.3), b=said("the answer is two", confidence=0.3))
    options = [Sampling(temperature=1.5, seed=seed, max_tokens=12) for seed in (1, 1, 2, 3)]
    texts = [await models.answer("a|b", sampling=sampling) for sampling in options]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


async def test_usage_adds_up_all_stages_and_members() -> None:
    models = Models(a=said("one"), b=said("two"), c=said("two"))
    events = await models.events("a>b|c")
    done = events[-1]
    assert isinstance(done, Finished)
    parts = [branch.usage for report in done.stages for branch in report.branches]
    assert len(parts) == 3
    assert done.usage.prompt_tokens == sum(u.prompt_tokens for u in parts) > 0
    assert done.usage.completion_tokens == sum(u.completion_tokens for u in parts) > 0
    meters = done.stages[-1].meters
    assert meters is not None
    assert meters.pieces == meters.certified + meters.looked_up + meters.uncertified
    assert meters.passes >= meters.pieces


@pytest.mark.parametrize("wiring", ["a", "b>a", "a>b", "a|b", "b>a|c", "(a>b)|c", "a|b>c"])
@pytest.mark.parametrize("on", ["enter", "token"])
async def test_a_fault_ends_the_run_with_its_own_error(wiring: str, on: Any) -> None:
    """Never as a group of errors, never as a short answer; and nothing stays open."""
    fault = Fault(on=on, after=1 if on == "token" else 0)
    models = Models(a=said("one two", faults=(fault,)), b=said("one two"), c=said("one two"))
    with pytest.raises(BackendUnavailable) as caught:
        await models.events(wiring)
    assert caught.value.model == "a"
    models.assert_nothing_left()


@pytest.mark.parametrize("wiring", ["a", "a>b", "a|b", "b>a|c", "(a>b)|c", "a|b>c"])
@pytest.mark.parametrize("how", ["break", "cancel", "raise"])
async def test_walking_away_leaves_nothing_behind(wiring: str, how: str) -> None:
    text = " ".join(["word"] * 50)
    models = Models(**{name: said(text, delay=0.002) for name in "abc"})
    what = plan(parse(wiring).topology, models.catalog)

    async def reads(after: int) -> None:
        async with run(what, ASK, Options(prompts=PROMPTS), models.catalog) as events:
            seen = 0
            async for _ in events:
                seen += 1
                if seen > after and how == "break":
                    break
                if seen > after and how == "raise":
                    raise KeyError("mine")

    if how == "cancel":
        with anyio.move_on_after(0.03) as scope:
            await reads(10**6)
        assert scope.cancelled_caught
    elif how == "raise":
        with pytest.raises(KeyError, match="mine"):
            await reads(5)
    else:
        await reads(5)
    models.assert_nothing_left()


async def test_a_hanging_member_is_left_by_leaving() -> None:
    models = Models(a=said("x"), b=said("x", faults=(Fault(after=0, action="hang"),)))
    with anyio.move_on_after(0.05) as scope:
        await models.events("a|b")
    assert scope.cancelled_caught
    models.assert_nothing_left()


async def test_groups_with_few_places_never_deadlock() -> None:
    """Many groups over models with one or two places, some wanting one model twice: all finish."""
    few = {name: said("one two three", seats=2, queue=100, delay=0.001) for name in "abc"}
    models = Models(**few)
    wirings = ["a|b", "b|c", "c|a", "(b>a)|a", "(a>c)|c|b", "a>b|c", "c|b>a", "(c>b)|(a>b)"] * 4
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for wiring in wirings:
                tasks.start_soon(models.answer, wiring)
    assert all(backend.counters.most <= 2 for backend in models.backends.values())
    models.assert_nothing_left()


async def test_a_member_without_sessions_is_refused_before_any_call() -> None:
    models = Models(a=said("x"), b=said("x"))
    models.catalog = Catalog(
        {"a": models.catalog["a"], "b": Entry(models.backends["b"], why_not_fused="it gives no ids")}
    )
    with pytest.raises(Exception, match="it gives no ids"):
        plan(parse("a|b").topology, models.catalog)
    assert not models.told


async def test_a_member_that_lost_its_sessions_since_is_an_error_of_that_member() -> None:
    models = Models(a=said("x"), b=said("x"))
    what = plan(parse("a|b").topology, models.catalog)
    late = Catalog({"a": models.catalog["a"], "b": Entry(models.backends["b"], why_not_fused="gone")})
    with pytest.raises(BackendError, match="gone"):
        async with run(what, ASK, Options(prompts=PROMPTS), late) as events:
            async for _ in events:
                pass
    models.assert_nothing_left()


async def test_who_drafts_on_a_model_knows_who_shares_its_passes() -> None:
    """Answers that it writes by itself, and sessions; whatever became of them."""
    answer = FakeSettings(answer="one two three four five", delay=0.001)
    models = Models(a=answer, b=answer)
    seen: dict[int, set[tuple[int, int]]] = {0: set(), 1: set()}
    times = [models.catalog[name].times for name in "ab"]
    for fails in (False, True):
        if fails:
            models.backends["a"].faults = (Fault(on="token", of="stream", after=3),)
        with anyio.fail_after(10):
            try:
                async with run(
                    plan(parse("a>a|b").topology, models.catalog), ASK, Options(PROMPTS), models.catalog
                ) as events:
                    async for event in events:
                        if isinstance(event, Delta):
                            seen[event.stage].add((times[0].sharing, times[1].sharing))
            except BackendError:
                assert fails
        assert [each.sharing for each in times] == [0, 0]
    assert (1, 0) in seen[0] and (1, 1) in seen[1]
