"""The scripted backend: its law, its script, its faults and its books."""

from __future__ import annotations

import itertools
import math
import time

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import errors
from backends.catalog import Entry
from backends.fake import FakeBackend, FakeModel, FakeSettings, Fault, Rule, cut
from backends.protocol import TextBackend, TokenBackend
from backends.types import Message, Sampling, TextDelta, TextEnd, TextEvent, TextRequest, Usage

HELLO = (Message("user", "Hello"),)


async def read(backend: FakeBackend, **sampling: object) -> list[TextEvent]:
    async with backend.stream(TextRequest(HELLO, Sampling(**sampling))) as events:  # type: ignore[arg-type]
        return [event async for event in events]


def text(events: list[TextEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# The model


def test_it_is_a_backend() -> None:
    backend = FakeBackend("a")
    assert isinstance(backend, TextBackend)
    assert isinstance(backend, TokenBackend)
    assert Entry(backend).token_backend() is backend


@given(st.text(max_size=40))
def test_encoding_loses_nothing(value: str) -> None:
    model = FakeModel(lambda _: "x")
    data = value.encode("utf-8", "surrogatepass")
    assert model.decode(model.encode(data)) == data


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=20)), max_size=4))
def test_a_prompt_can_be_read_back(turns: list[tuple[str, str]]) -> None:
    model = FakeModel(lambda _: "x")
    messages = tuple(Message(role, content.encode(errors="replace").decode()) for role, content in turns)
    assert model.messages(model.render(messages)) == messages


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12), st.integers(0, 3))
def test_every_history_has_a_distribution(history: list[int], seed: int) -> None:
    model = FakeModel(lambda _: "Hello world, 中国", seed=seed)
    one, other = model.distribution(history), model.distribution(tuple(history))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (len(model),)
    assert one.min() > 0
    assert one.sum() == pytest.approx(1, abs=1e-12)


def test_seeds_and_histories_make_a_difference() -> None:
    one, other = FakeModel(lambda _: "x", seed=1), FakeModel(lambda _: "x", seed=2)
    assert (one.distribution([1]) != other.distribution([1])).any()
    assert (one.distribution([65, 66]) != one.distribution([66, 65])).any()


@pytest.mark.parametrize("script", ["", "a", "The answer is 42.", "中国的答案是🎉👩‍💻", "naïve\n\n  code()"])
def test_greedy_follows_the_script_and_ends(script: str) -> None:
    model = FakeModel(lambda _: script)
    history = model.render(HELLO)
    said: list[int] = []
    while (best := int(np.argmax(model.distribution([*history, *said])))) not in model.ends:
        said.append(best)
        assert len(said) < 100
    assert model.decode(said).decode() == script
    assert said == model.encode(script.encode())


def test_an_answer_that_left_the_script_ends_too() -> None:
    model = FakeModel(lambda _: "中国 is a name")
    said = model.encode("Yes 中".encode())[:-1] + list("中".encode()[:2])  # in the middle of a character
    for _ in range(40):
        best = int(np.argmax(model.distribution([*model.render(HELLO), *said])))
        if best in model.ends:
            break
        said.append(best)
    else:
        pytest.fail("it never ended")
    model.decode(said).decode()  # and is UTF-8


def test_a_tiny_vocabulary_can_be_enumerated() -> None:
    model = FakeModel(lambda _: "ab", pieces=(b"a", b"b", b"ab"), seed=3)
    prompt = model.render(HELLO)
    assert model.unknown in prompt  # "Hello" has no tokens here
    total = 0.0
    for path in itertools.product(range(len(model)), repeat=3):
        probability = 1.0
        for n, id in enumerate(path):
            probability *= model.distribution([*prompt, *path[:n]])[id]
        total += probability
    assert total == pytest.approx(1)


def test_a_rule_of_ones_own() -> None:
    table = np.array([0.5, 0.25, 0.25, 0, 0, 0, 0, 0])
    model = FakeModel(lambda _: "", pieces=(b"a", b"b", b"c"), rule=lambda _: table)
    top = model.top([], 2)
    assert top.ids.tolist() == [0, 1]
    assert top.outside == 0.25
    whole = model.top([], 99)
    assert whole.outside == 0
    assert whole.logprobs[-1] == -math.inf


def test_cut_sorts_and_breaks_ties_by_id() -> None:
    top = cut(np.array([0.1, 0.3, 0.3, 0.2, 0.1]), 4)
    assert top.ids.tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(np.exp(top.logprobs), [0.3, 0.3, 0.2, 0.1])
    assert top.outside == pytest.approx(0.1)
    with pytest.raises(ValueError, match="k"):
        cut(np.array([1.0]), 0)


def test_fingerprints_tell_tokenizers_apart() -> None:
    fingerprints = {
        FakeModel(lambda _: "", words=words).vocabulary.fingerprint for words in (None, (), ("ab",), ("ab", "cd"))
    }
    assert len(fingerprints) == 4
    assert FakeModel(lambda _: "x", seed=1).vocabulary.fingerprint == FakeModel(lambda _: "y").vocabulary.fingerprint


# The script


@pytest.mark.anyio
async def test_the_default_echoes() -> None:
    events = await read(FakeBackend("alpha"))
    assert text(events) == "alpha: Hello"
    assert isinstance(events[-1], TextEnd)
    assert events[-1].usage.completion_tokens == len(events) - 1


@pytest.mark.anyio
async def test_rules_and_functions() -> None:
    rules = (Rule("nothing", "?"), Rule("ell", "{last} yourself, says {name}. {other}"))
    assert text(await read(FakeBackend("a", FakeSettings(rules=rules)))) == "Hello yourself, says a. {other}"
    assert text(await read(FakeBackend("a", answer=lambda messages: messages[-1].content[::-1]))) == "olleH"


@pytest.mark.anyio
async def test_what_a_user_writes_is_no_placeholder() -> None:
    backend = FakeBackend("a", FakeSettings(answer="{last}"))
    async with backend.stream(TextRequest((Message("user", "{name} {last}"),))) as events:
        assert text([event async for event in events]) == "{name} {last}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("split", "deltas"),
    [
        ("token", ["The", " answer", " is", " 中国", "."]),
        ("character", list("The answer is 中国.")),
        ("word", ["The", " answer", " is", " 中国."]),
        ("whole", ["The answer is 中国."]),
    ],
)
async def test_splits(split: str, deltas: list[str]) -> None:
    backend = FakeBackend(
        "a", FakeSettings(answer="The answer is 中国.", split=split, words=("The", " answer", " is", " 中国"))
    )  # type: ignore[arg-type]
    *found, _ = await read(backend)
    assert [delta.text for delta in found] == deltas  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_character_of_many_tokens_is_one_delta() -> None:
    *found, end = await read(FakeBackend("a", FakeSettings(answer="é龍", words=())))
    assert found == [TextDelta("é"), TextDelta("龍")]
    assert end.usage.completion_tokens == 5  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_reasoning_usage_and_finish() -> None:
    settings = FakeSettings(answer="Yes", reasoning="let me think", usage=Usage(7, 9), finish_reason="content_filter")
    events = await read(FakeBackend("a", settings))
    assert events == [
        TextDelta("", "let"),
        TextDelta("", " me"),
        TextDelta("", " think"),
        TextDelta("Yes"),
        TextEnd("content_filter", Usage(7, 9)),
    ]


@pytest.mark.anyio
async def test_delays() -> None:
    begun = time.monotonic()
    *deltas, _ = await read(
        FakeBackend("a", FakeSettings(answer="Yes No", words=("Yes", " No"), first_delay=0.1, delay=0.02))
    )
    assert len(deltas) == 2
    assert 0.12 <= time.monotonic() - begun < 5


# Faults


@pytest.mark.anyio
@pytest.mark.parametrize("name", [kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)])
async def test_every_error_can_be_raised(name: str) -> None:
    if name == "BackendError" or not hasattr(errors, name):
        pytest.skip("the base")
    backend = FakeBackend("a", FakeSettings(faults=(Fault(on="enter", error=name),)))
    with pytest.raises(getattr(errors, name)):
        await read(backend)
    with pytest.raises(getattr(errors, name)):
        async with backend.open(HELLO, k=4):
            pytest.fail("it opened")
    assert (backend.counters.streams, backend.counters.sessions) == (0, 0)


@pytest.mark.anyio
async def test_faults_in_the_middle() -> None:
    def ours(model: str) -> Exception:
        return KeyError(model)

    backend = FakeBackend("a", FakeSettings(faults=(Fault(after=2, error=ours),)))
    seen = []
    with pytest.raises(KeyError):
        async with backend.stream(TextRequest(HELLO)) as events:
            async for event in events:
                seen.append(event)
    assert len(seen) == 2
    async with backend.open(HELLO, k=4) as session:
        await session.step()
        await session.step([65])
        with pytest.raises(KeyError):
            await session.score([66])


@pytest.mark.anyio
async def test_faults_of_one_kind_only_and_some_times_only() -> None:
    backend = FakeBackend("a", FakeSettings(faults=(Fault(on="enter", of="session", times=2),)))
    await read(backend)
    for _ in range(2):
        with pytest.raises(errors.BackendUnavailable):
            async with backend.open(HELLO, k=4):
                pass
    async with backend.open(HELLO, k=4) as session:
        await session.step()
    starting = FakeBackend(
        "a", FakeSettings(faults=(Fault(on="start", error="BackendAuthFailed"), Fault(on="ready", times=1)))
    )
    with pytest.raises(errors.BackendAuthFailed):
        await starting.start()
    with pytest.raises(errors.BackendUnavailable):
        await starting.ready()
    await starting.ready()


@pytest.mark.anyio
async def test_hanging_and_crawling() -> None:
    backend = FakeBackend("a", FakeSettings(faults=(Fault(action="hang", after=1),)))
    seen = []
    with anyio.move_on_after(0.05) as scope:
        async with backend.stream(TextRequest(HELLO)) as events:
            async for event in events:
                seen.append(event)
    assert scope.cancelled_caught
    assert len(seen) == 1
    assert backend.counters.streams == 0
    backend.faults = (Fault(action="slow", after=1, seconds=0.03),)
    begun = time.monotonic()
    deltas = len(await read(backend)) - 1
    assert time.monotonic() - begun >= 0.03 * (deltas - 1)


# The books


@pytest.mark.anyio
async def test_counters() -> None:
    backend = FakeBackend("a", FakeSettings(seats=2, queue=1))
    async with backend.open(HELLO, k=4) as one, backend.stream(TextRequest(HELLO)) as events:
        await one.step()
        await anext(events)
        counters = backend.counters
        assert (counters.streams, counters.sessions, counters.opened, counters.closed) == (1, 1, 2, 0)
        assert (counters.deltas, counters.passes, counters.most) == (1, 1, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(read, backend)
            await anyio.sleep(0.01)
            assert backend.counters.waiting == 1
            with pytest.raises(errors.BackendOverloaded) as caught:
                await read(backend)
            assert caught.value.retry_after
            group.cancel_scope.cancel()
    assert (backend.counters.streams, backend.counters.sessions, backend.counters.waiting) == (0, 0, 0)
    assert backend.counters.opened == backend.counters.closed == 2


@pytest.mark.anyio
async def test_misuse_of_a_session_is_loud() -> None:
    backend = FakeBackend("a", FakeSettings(delay=0.01, first_delay=0.01, max_k=3))
    async with backend.open(HELLO, k=10) as session:
        with pytest.raises(RuntimeError, match="lookup"):
            await session.lookup([1])
        assert len((await session.step()).ids) == 3
        with pytest.raises(ValueError, match="vocabulary"):
            await session.step([10**6])
        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(session.step, [65])
                group.start_soon(session.step, [66])
        assert "two tasks" in str(caught.value.exceptions[0])
        await session.rewind(0)
        with pytest.raises(RuntimeError, match="lookup"):
            await session.lookup([1])


@pytest.mark.anyio
async def test_models_that_can_do_less() -> None:
    text_only = FakeBackend("a", FakeSettings(sessions=False))
    assert "text only" in (await text_only.why_not_fused() or "")
    with pytest.raises(errors.CapabilityMissing):
        async with text_only.open(HELLO, k=4):
            pass
    backend = FakeBackend("a", FakeSettings(lookup=False))
    assert await backend.why_not_fused() is None
    async with backend.open(HELLO, k=4) as session:
        await session.step()
        with pytest.raises(errors.CapabilityMissing):
            await session.lookup([1])


# Settings


def test_settings_from_a_configuration() -> None:
    found = FakeSettings.from_mapping(
        {
            "answer": "Hi",
            "rules": [{"contains": "2+2", "answer": "4"}],
            "faults": [{"on": "enter", "error": "BackendTimeout", "times": 1}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            "words": ["ab", "cd"],
            "seats": 2,
        }
    )
    assert found == FakeSettings(
        answer="Hi",
        rules=(Rule("2+2", "4"),),
        faults=(Fault(on="enter", error="BackendTimeout", times=1),),
        usage=Usage(1, 2),
        words=("ab", "cd"),
        seats=2,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"anwser": "Hi"},
        {"split": "line"},
        {"confidence": 1.0},
        {"delay": -1},
        {"faults": [{"error": "NoSuchError"}]},
        {"faults": [{"when": "now"}]},
        {"rules": [{"contain": "x"}]},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown key|must be|can't be"):
        FakeSettings.from_mapping(wrong)
