"""Tools and forms through the engine: who is told what, who may call, what is refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from backends.catalog import Catalog, Entry
from backends.errors import RequestRejected
from backends.fake import FakeBackend, FakeSettings
from backends.fake.settings import Rule
from backends.types import (
    Message,
    Sampling,
    TextDelta,
    TextEnd,
    TextEvent,
    TextRequest,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from strategies.engine import Constraint, Options, Tool, Tools, run
from strategies.engine.events import Delta, Event, Finished, StageStarted
from strategies.engine.guiding import BadConstraint
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping(
    "test", {"default": {"solver": "{question}", "reviewer": "{question} {answer}", "verifier": "{question} {answer}"}}
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER, NOW = Tool("get_weather", "The weather.", PARAMETERS), Tool("now", "The time.")
TOOLS = Tools((WEATHER, NOW))
ASK = (Message("user", "How is the weather?"),)
SCHEMA = Constraint("json_schema", json.dumps({**PARAMETERS, "additionalProperties": False}))


def call(name: str = "get_weather", arguments: str = '{"city": "北京 👍"}') -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@dataclass
class Seen:
    """What a client sees of an answer."""

    events: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    @property
    def deltas(self) -> list[Delta]:
        last = self.finished.stages[-1].stage
        return [event for event in self.events if isinstance(event, Delta) and event.stage == last]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def calls(self) -> list[tuple[str, str]]:
        found: list[list[str]] = []
        for part in (part for delta in self.deltas for part in delta.tool_calls):
            if part.name is not None:
                found.append([part.name, ""])
            found[part.index][1] += part.arguments
        return [(name, arguments) for name, arguments in found]

    @property
    def all_calls(self) -> list[ToolCallDelta]:
        return [part for event in self.events if isinstance(event, Delta) for part in event.tool_calls]


class Models:
    """Fake models and what they were told."""

    def __init__(self, **settings: FakeSettings | str) -> None:
        self.told: dict[str, Sequence[Message]] = {}
        self.backends: dict[str, FakeBackend] = {}
        for name, each in settings.items():
            value = FakeSettings(answer=each) if isinstance(each, str) else each
            self.backends[name] = FakeBackend(name, value, answer=None if value.rules else self._answer(name, value))
        self.catalog = Catalog({name: Entry(backend) for name, backend in self.backends.items()})

    def _answer(self, name: str, settings: FakeSettings) -> Any:
        def answer(messages: Sequence[Message]) -> str:
            self.told[name] = tuple(messages)
            return settings.answer

        return answer

    async def see(self, wiring: str, messages: Sequence[Message] = ASK, **asked: Any) -> Seen:
        made = plan(parse(wiring).topology, self.catalog)
        seen = Seen()
        async with run(made, messages, Options(prompts=PROMPTS, **asked), self.catalog) as events:
            async for event in events:
                seen.events.append(event)
        for backend in self.backends.values():
            assert (backend.counters.streams, backend.counters.sessions) == (0, 0)
        return seen


OTHER = ("tool", "_call", "ame", '": "', "北", " the")


@pytest.mark.parametrize("wiring", ["a", "a|b", "b|c", "a*0.1|b*3|c", "x>a", "x>a|c", "(x>a)|b"])
async def test_a_scripted_call_is_a_call_in_every_wiring(wiring: str) -> None:
    models = Models(
        a=call(), b=FakeSettings(answer=call(), words=OTHER), c=FakeSettings(answer=call(), seed=7), x="A draft."
    )
    seen = await models.see(wiring, tools=TOOLS)
    assert (seen.text, seen.calls) == ("", [("get_weather", '{"city": "北京 👍"}')])
    assert seen.finished.finish_reason == "tool_calls"
    assert seen.finished.stages[-1].finish_reason == "tool_calls"
    assert len(seen.all_calls) > 3, "arguments come as they are written"


async def test_text_then_two_calls() -> None:
    models = Models(a="Let me see.\n" + call() + "\n" + call("now", "{}"))
    seen = await models.see("a", tools=TOOLS)
    assert seen.text == "Let me see.\n"
    assert seen.calls == [("get_weather", '{"city": "北京 👍"}'), ("now", "{}")]
    kinds = ["call" if delta.tool_calls else "text" for delta in seen.deltas]
    assert kinds == sorted(kinds, reverse=True), "all text comes before the calls"
    assert (await models.see("a", tools=Tools((WEATHER, NOW), parallel=False))).calls == seen.calls[:1]


async def test_an_answer_without_a_call_is_text() -> None:
    seen = await Models(a="Sunny, I think.").see("a", tools=TOOLS)
    assert (seen.text, seen.calls, seen.finished.finish_reason) == ("Sunny, I think.", [], "stop")


async def test_a_choice_is_held_against_what_the_model_would_rather_do() -> None:
    models = Models(a="Sunny, I think.", b=call())
    required = await models.see("a", tools=Tools((WEATHER, NOW), "required"))
    assert required.text == ""
    assert required.calls
    named = await models.see("b", tools=Tools((WEATHER, NOW), "named", "now"))
    assert named.calls == [("now", "{}")]
    none = await models.see("b", tools=Tools((WEATHER, NOW), "none"))
    assert none.calls == []
    assert none.finished.finish_reason == "stop"
    assert "<tool_call>" not in none.text
    assert none.text


async def test_a_loop_of_several_steps() -> None:
    """The results are read, and the call that they answer."""
    rules = (Rule("<tool_response>\n12 degrees", "It is 12 degrees."), Rule("weather", call()))
    models = Models(a=FakeSettings(rules=rules), b=FakeSettings(rules=rules, words=OTHER))
    for wiring in ("a", "a|b"):
        first = await models.see(wiring, tools=TOOLS)
        asked = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": first.calls[0][1]},
        }
        turns = (
            *ASK,
            Message("assistant", "", {"tool_calls": [asked]}),
            Message("tool", "12 degrees", {"tool_call_id": "call_1"}),
        )
        second = await models.see(wiring, turns, tools=TOOLS)
        assert (second.text, second.calls, second.finished.finish_reason) == ("It is 12 degrees.", [], "stop")


async def test_earlier_stages_are_told_of_tools_and_call_none() -> None:
    models = Models(a="Call it: " + call("now", "{}"), b=call())
    seen = await models.see("a>b", tools=TOOLS)
    assert seen.calls == [("get_weather", '{"city": "北京 👍"}')]
    assert all(delta.tool_calls == () for delta in seen.events if isinstance(delta, Delta) and delta.stage == 0)
    assert models.told["a"][0].role == "system"
    assert "You can't call any" in models.told["a"][0].content
    assert "get_weather" in models.told["a"][0].content
    assert "To call a function" in models.told["b"][0].content
    assert models.told["b"][-1].content == "How is the weather? Call it: " + call("now", "{}")


@pytest.mark.parametrize("wiring", ["a>b", "a|c>b"])
async def test_only_the_answer_is_held_to_a_form(wiring: str) -> None:
    models = Models(a="Free text.", c="Free text.", b='{"city":"Paris"}')
    seen = await models.see(wiring, constraint=SCHEMA)
    assert seen.text == '{"city":"Paris"}'
    assert models.told["b"][-1].content == "How is the weather? Free text."
    await models.see(wiring, tools=Tools((NOW,), "required"))
    assert models.told["b"][-1].content == "How is the weather? Free text."


async def test_stop_strings_do_not_match_inside_calls() -> None:
    models = Models(a="Let me see: Paris.\n" + call(arguments='{"city": "Rome, arguments"}'))
    seen = await models.see("a", tools=TOOLS, sampling=Sampling(stop=("Rome", "arguments", "tool_call>")))
    assert seen.calls == [("get_weather", '{"city": "Rome, arguments"}')]
    stopped = await models.see("a", tools=TOOLS, sampling=Sampling(stop=("Paris",)))
    assert (stopped.text, stopped.calls, stopped.finished.finish_reason) == ("Let me see: ", [], "stop")


async def test_what_could_have_begun_a_stop_string_is_not_lost_before_a_call() -> None:
    seen = await Models(a="wait\n" + call()).see("a", tools=TOOLS, sampling=Sampling(stop=("\n\n",)))
    assert (seen.text, len(seen.calls)) == ("wait\n", 1)


@pytest.mark.parametrize("limit", [5, 25, 45, 60])
async def test_a_call_that_is_cut_ends_with_length(limit: int) -> None:
    whole = call(arguments=json.dumps({"city": "x" * 60}))
    seen = await Models(a=whole).see("a", tools=TOOLS, sampling=Sampling(max_tokens=limit))
    assert seen.finished.finish_reason == "length"
    assert seen.text == ""
    assert all(whole.split('"arguments": ')[1].startswith(arguments) for _, arguments in seen.calls)
    cut = await Models(a='{"city": "somewhere far away"}').see("a", constraint=SCHEMA, sampling=Sampling(max_tokens=5))
    assert cut.finished.finish_reason == "length"
    assert '{"city": "somewhere far away"}'.startswith(cut.text)


async def test_a_form_and_tools_together() -> None:
    models = Models(a=call(), b='{"city": "<tool_call>"}', c="Neither.")
    assert (await models.see("a", tools=TOOLS, constraint=SCHEMA)).calls == [("get_weather", '{"city": "北京 👍"}')]
    text = await models.see("b", tools=TOOLS, constraint=SCHEMA)
    assert (text.text, text.calls) == ('{"city": "<tool_call>"}', [])
    neither = await models.see("c", tools=TOOLS, constraint=SCHEMA)
    assert neither.calls or isinstance(json.loads(neither.text)["city"], str)


async def test_log_probabilities_of_an_answer_with_calls_are_those_of_its_text() -> None:
    models = Models(a="Let me see.\n" + call(), b=FakeSettings(answer="Let me see.\n" + call(), words=OTHER))
    seen = await models.see("a|b", tools=TOOLS, logprobs=2)
    tokens = [token for delta in seen.deltas for token in delta.tokens]
    assert b"".join(token.text for token in tokens) == b"Let me see.\n"
    assert len(seen.calls) == 1


async def test_a_turn_that_a_transcript_would_end_goes_on_where_a_form_says_so() -> None:
    models = Models(a="one\nUser: two")
    models.backends["a"].turn_stops = ("\nUser:",)  # type: ignore[attr-defined]
    assert (await models.see("a", constraint=Constraint("regex", "[a-z]+\nUser: [a-z]+"))).text == "one\nUser: two"
    assert (await models.see("a", tools=TOOLS)).text == "one"


async def test_one_model_alone_draws_as_it_does_by_itself() -> None:
    models = Models(a=FakeSettings(answer="x" * 40, confidence=0.3), b=FakeSettings(answer="x" * 40, confidence=0.3))
    models.backends["a"].default_sampling = Sampling(temperature=1.5)  # type: ignore[attr-defined]
    texts = {
        (await models.see("a", constraint=Constraint("regex", "[a-z]{30}"), sampling=Sampling(seed=n))).text
        for n in range(4)
    }
    assert len(texts) == 4
    greedy = Sampling(seed=1, temperature=0.0)
    seen = [await models.see("a", constraint=Constraint("regex", "[a-z]{30}"), sampling=greedy) for _ in range(2)]
    assert seen[0].text == seen[1].text == "x" * 30
    same = {
        (await models.see("a|b", constraint=Constraint("regex", "[a-z]{30}"), sampling=Sampling(seed=n))).text
        for n in range(3)
    }
    assert same == {"x" * 30}


async def test_one_model_alone_writes_until_its_context_is_full() -> None:
    models = Models(a=FakeSettings(answer='{"city": "' + "far " * 299, context=600))
    seen = await models.see("a", constraint=SCHEMA, sampling=Sampling(max_tokens=5000))
    assert seen.finished.finish_reason == "length"
    assert len(seen.text) > 100


# What is refused


async def test_a_form_that_can_not_be_used_is_refused_before_anything_runs() -> None:
    models = Models(a="x", b="y")
    bad: list[dict[str, Any]] = [
        {"constraint": Constraint("json_schema", '{"type": "nope"}')},
        {"constraint": Constraint("regex", "a(b")},
        {"tools": Tools((Tool("f", "", {"properties": {"a": {"type": 3}}}),))},
    ]
    for asked in bad:
        for wiring in ("a", "a|b", "a>b", "a>b|a"):
            with pytest.raises(BadConstraint):
                await models.see(wiring, **asked)
    assert all(backend.counters.opened == 0 for backend in models.backends.values())


@pytest.mark.parametrize("asked", [{"tools": TOOLS}, {"constraint": SCHEMA}])
async def test_a_model_without_sessions_is_refused_before_anything_runs(asked: dict[str, Any]) -> None:
    models = Models(a="x", b=FakeSettings(answer="y", sessions=False))
    models.catalog = Catalog({**models.catalog, "b": Entry(models.backends["b"], why_not_fused="it only streams")})
    with pytest.raises(RequestRejected, match="can't be honoured by model 'b': it only streams") as caught:
        await models.see("a>b", **asked)
    assert caught.value.param in ("tools", "response_format")
    assert models.backends["a"].counters.opened == 0
    assert (await models.see("b>a", tools=Tools((NOW,), "required"))).calls == [("now", "{}")]


# Servers that know tools by themselves


class Native:
    """A server's model: notes what it is asked, and calls a tool."""

    name = "n"

    def __init__(self) -> None:
        self.requests: list[TextRequest] = []

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        self.requests.append(request)
        yield self._events()

    async def _events(self) -> AsyncIterator[TextEvent]:
        yield TextDelta("Hm.", tokens=(TokenLogprob(b"Hm.", -0.5),))
        yield TextDelta("", tool_calls=(ToolCallDelta(0, "call_x", "now", "{}"),))
        yield TextEnd("tool_calls", Usage(3, 4))

    async def start(self) -> None: ...

    async def ready(self) -> None: ...

    async def aclose(self) -> None: ...


CALLED = Message("assistant", "", {"tool_calls": [{"id": "c", "function": {"name": "now", "arguments": "{}"}}]})
TURNS = (*ASK, CALLED, Message("tool", "noon", {"tool_call_id": "c"}), Message("user", "And then?"))
EXTRA = {"tools": [{"type": "function"}], "response_format": {"type": "json_object"}}


@pytest.mark.parametrize("wiring", ["n", "a>n"])
async def test_a_server_that_knows_tools_gets_the_fields_and_turns_as_they_came(wiring: str) -> None:
    models, native = Models(a="A draft."), Native()
    models.catalog = Catalog({**models.catalog, "n": Entry(native, native=True)})
    seen = await models.see(wiring, TURNS, tools=TOOLS, constraint=Constraint("json_object"), extra=EXTRA)
    request = native.requests[-1]
    assert request.extra == EXTRA
    assert request.messages[:-1] == TURNS[:-1]
    assert (seen.text, seen.calls, seen.finished.finish_reason) == ("Hm.", [("now", "{}")], "tool_calls")
    assert [token.text for delta in seen.deltas for token in delta.tokens] == [b"Hm."]
    if wiring == "a>n":
        assert [message.role for message in models.told["a"]] == ["system", "user", "assistant", "user"]


async def test_as_an_earlier_stage_it_reads_text_and_gets_no_fields() -> None:
    models, native = Models(a="done"), Native()
    models.catalog = Catalog({**models.catalog, "n": Entry(native, native=True)})
    await models.see("n>a", TURNS, tools=TOOLS, extra=EXTRA)
    request = native.requests[0]
    assert request.extra == {}
    assert [message.role for message in request.messages] == ["system", "user", "assistant", "user"]
    assert all("tool_calls" not in message.extra for message in request.messages)


async def test_what_is_not_asked_costs_no_session() -> None:
    models = Models(a="x")
    seen = await models.see("a", TURNS)
    assert seen.text == "x"
    assert isinstance(seen.events[0], StageStarted)
    assert models.told["a"][-1].content == "<tool_response>\nnoon\n</tool_response>\n\nAnd then?"
    assert seen.finished.stages[0].meters is None
