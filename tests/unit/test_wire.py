"""The wire format by itself: transcripts, the order of what is shown, writing and reading."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from edge import edge, fake, golden, without_chance
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.types import TokenLogprob, ToolCallDelta, Usage
from gateway.abilities import Asked
from gateway.wire.answers import Choice, Piece, answer, completion, usage_value
from gateway.wire.decode import RequestLimits, decode_chat
from gateway.wire.errors import APIError
from gateway.wire.logprobs import Logprobs
from gateway.wire.sse import ChunkWriter, event
from strategies.engine import Constraint, Tool, Tools
from strategies.engine.events import BranchReport, Delta, Finished, StageFinished, StageReport
from strategies.planning import Branch, Plan, TextStage
from strategies.topology import Model, serial

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "model", "fields"),
    [
        ("single", "a", {}),
        ("usage", "a", {"stream_options": {"include_usage": True}}),
        ("stages", "a>b|c", {"modelnet": {"stages": True, "drafts": "off"}, "stream_options": {"include_usage": True}}),
        ("cut", "a", {"max_tokens": 2}),
        ("failed", "broken", {}),
    ],
)
async def test_transcripts(name: str, model: str, fields: dict[str, object]) -> None:
    """drop-in 1 to 8, 10: what goes over the wire, to the byte (without ids and times)."""
    from backends.fake import Fault

    broken = fake("broken", "one two three", faults=(Fault(after=2),))
    async with edge(fake("a", "yes, 是的 😀"), fake("b", "no"), fake("c", "no"), broken) as e:
        reply = await e.chat(model, stream=True, **fields)
        golden(f"stream_{name}.sse", without_chance(reply.body.decode()))


@settings(deadline=None)  # how fast a busy machine is, is not the question
@given(TEXTS, st.integers(0, 100))
def test_text_survives_being_written(text: str, choice: int) -> None:
    """drop-in 11: one line of JSON, whatever the text holds."""
    writer = ChunkWriter(id="i", created=1, model="a|b", fingerprint="f", with_usage=True)
    for chunk, key in (
        (writer.content(choice, text), "content"),
        (writer.reasoning(choice, text, 3), "reasoning"),
        (writer.reasoning(choice, text, 3), "reasoning_content"),
    ):
        assert chunk.startswith(b"data: {")
        assert chunk.endswith(b"}\n\n")
        assert chunk.count(b"\n") == 2
        assert b"\r" not in chunk
        value = json.loads(chunk[6:])
        assert value["choices"][0]["delta"][key] == text
        assert value["choices"][0]["index"] == choice
        assert value["usage"] is None
        assert value["model"] == "a|b"


def test_every_chunk_has_the_same_envelope() -> None:
    """drop-in 3: the fast way of writing and the slow one agree."""
    for with_usage in (True, False):
        writer = ChunkWriter(id="i", created=1, model='"quoted"', fingerprint="f", with_usage=with_usage)
        chunks = [
            writer.role(0),
            writer.content(0, "x"),
            writer.reasoning(0, "x", 1),
            writer.finish(0, "stop", None),
            writer.usage({"total_tokens": 1}, {"stages": []}),
        ]
        values = [json.loads(chunk[6:]) for chunk in chunks]
        envelope = ("id", "object", "created", "model", "system_fingerprint")
        assert len({tuple(value[key] for key in envelope) for value in values}) == 1
        assert all(("usage" in value) == with_usage for value in values[:-1])


def test_an_event_is_one_line() -> None:
    assert event({"a": "\n\r\u2028"}).count(b"\n") == 2


def chain(length: int) -> Plan:
    stages = [TextStage(Branch(f"m{i}", "solver", i - 1 if i else None)) for i in range(length)]
    return Plan(serial(Model(f"m{i}") for i in range(length)), "si", tuple(stages))


def finished(stage: int) -> StageFinished:
    report = BranchReport("m", "solver", Usage(1, 1))
    return StageFinished(StageReport(stage, (report,), 0.1, 0.1, "stop"))


@settings(deadline=None)
@given(st.data())
def test_stages_are_shown_in_order_whatever_the_order_of_events(data: st.DataObject) -> None:
    """drop-in 8: stages that run side by side come out one after another, complete, before the answer."""
    count = data.draw(st.integers(2, 4))
    texts = [data.draw(st.lists(st.sampled_from("abc"), max_size=3)) for _ in range(count - 1)]
    queues = [[*(Delta(i, text) for text in texts[i]), finished(i)] for i in range(count - 1)]
    choice = Choice(chain(count), show_stages=True)
    pieces: list[Piece] = []
    while any(queues):
        index = data.draw(st.sampled_from([i for i, queue in enumerate(queues) if queue]))
        pieces += choice.read(queues[index].pop(0))
    pieces += choice.read(Delta(count - 1, "answer"))
    pieces += choice.read(Finished("stop", Usage(), ()))
    shown = "".join(piece.text for piece in pieces if piece.reasoning)
    assert shown == "\n\n".join("".join(text) for text in texts if text)
    assert [piece.text for piece in pieces if not piece.reasoning] == ["answer"]
    assert [piece.stage for piece in pieces] == sorted(piece.stage for piece in pieces)


def test_reasoning_never_follows_content() -> None:
    """drop-in 8: even where a server says so."""
    choice = Choice(chain(2), show_stages=False)
    events = [Delta(1, "", "think"), Delta(1, "say"), Delta(1, "", "more"), Delta(1, "end", "late")]
    pieces = [piece for item in events for piece in choice.read(item)]
    assert [(piece.text, piece.reasoning) for piece in pieces] == [("think", True), ("say", False), ("end", False)]


def test_usage_adds_up() -> None:
    """drop-in 34."""
    assert usage_value([Usage(1, 2), Usage(3, 4)]) == {
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "total_tokens": 10,
    }


def test_details_of_usage_add_up_where_they_are_told() -> None:
    """drop-in 34: a stage of which nothing is said counts as nothing, and nobody's word is no detail at all."""
    told = usage_value([Usage(5, 4, 3), Usage(3, 4), Usage(1, 1, 0, 2)])
    assert told["prompt_tokens_details"] == {"cached_tokens": 3}
    assert told["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert told["total_tokens"] == 18


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("model", "messages", "stream", "stream_options", "n", "temperature", "top_p", "seed", "stop", "max_tokens"),
        *("max_completion_tokens", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format"),
        *("tools", "tool_choice", "modalities", "audio", "modelnet", "functions", "parallel_tool_calls", "other"),
    ]
)


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=6), st.booleans())
def test_no_json_is_ever_more_than_a_400(fields: dict[str, object], valid_base: bool) -> None:
    """drop-in 24: decoding raises APIErrors of status 400 and nothing else."""
    base = {"model": "a", "messages": [{"role": "user", "content": "x"}]} if valid_base else {}
    try:
        decode_chat(json.dumps({**base, **fields}).encode(), RequestLimits())
    except APIError as error:
        assert error.status == 400


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_are_ever_more_than_a_400(body: bytes) -> None:
    """drop-in 24."""
    with pytest.raises(APIError) as caught:
        decode_chat(body, RequestLimits())
    assert caught.value.status == 400


def test_top_p_0_is_greedy() -> None:
    """drop-in 15: what it means, whichever sampler follows."""
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "top_p": 0, "temperature": 1.5}
    sampling = decode_chat(json.dumps(body).encode(), RequestLimits()).sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, None)


def test_log_probabilities_as_they_are_written() -> None:
    """drop-in 17: halves of characters, minus infinity, no more alternatives than were asked for."""
    top = ((b"\xe4\xbd", -0.5), (b"b", -math.inf), (b"c", -3.0))
    tokens = (TokenLogprob(b"\xe4\xbd", -0.5, top), TokenLogprob(b"\xa0", -math.inf))
    first, second = Logprobs(2).values(tokens)
    assert first == {
        "token": "\ufffd",
        "bytes": [0xE4, 0xBD],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "\ufffd", "bytes": [0xE4, 0xBD], "logprob": -0.5},
            {"token": "b", "bytes": [98], "logprob": -9999.0},
        ],
    }
    assert second == {"token": "\ufffd", "bytes": [0xA0], "logprob": -9999.0, "top_logprobs": []}
    assert Logprobs(0).values(tokens)[0]["top_logprobs"] == []
    assert bytes(first["bytes"] + second["bytes"]).decode() == "\u4f60"


@settings(deadline=None)
@given(st.data())
def test_streamed_calls_join_to_the_whole_ones(data: st.DataObject) -> None:
    """drop-in 7, 19, 20: id, type and name once, the index everywhere, at most one call where one is wanted; older form too."""
    names = data.draw(st.lists(st.sampled_from("fgh"), min_size=1, max_size=3))
    one_call = data.draw(st.booleans())
    deltas = []
    for index, name in enumerate(names):
        parts = data.draw(st.lists(TEXTS, max_size=3))
        deltas.append(ToolCallDelta(index, f"call_{index}", name, "".join(parts[:1])))
        deltas += [ToolCallDelta(index, arguments=part) for part in parts[1:]]
    said = data.draw(st.sampled_from(["", "Let me see."]))
    choice = Choice(chain(1), show_stages=False, one_call=one_call)
    events = [*([Delta(0, said)] if said else []), *(Delta(0, "", tool_calls=(delta,)) for delta in deltas)]
    pieces = [piece for event in events for piece in choice.read(event)]
    whole = answer(pieces, "tool_calls", None)
    assert [call.name for call in whole.tool_calls] == (names[:1] if one_call else names)
    assert whole.text == said

    writer = ChunkWriter(id="i", created=1, model="m", fingerprint="f", with_usage=False)
    joined: dict[int, dict[str, str]] = {}
    older = {"name": "", "arguments": ""}
    for piece in pieces:
        if not piece.tool_calls:
            continue
        for part in json.loads(writer.tool_calls(0, piece.tool_calls)[6:])["choices"][0]["delta"]["tool_calls"]:
            assert (part.get("type") == "function") == ("id" in part) == ("name" in part["function"])
            call = joined.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
            for key, value in {"id": part.get("id", ""), **part["function"]}.items():
                call[key] += value
        for written in writer.tool_calls(0, piece.tool_calls, legacy=True).split(b"\n\n")[:-1]:
            for key, value in json.loads(written[6:])["choices"][0]["delta"]["function_call"].items():
                older[key] += value
    assert [joined[index] for index in sorted(joined)] == [
        {"id": call.id, "name": call.name, "arguments": call.arguments} for call in whole.tool_calls
    ]
    assert older == {"name": whole.tool_calls[0].name, "arguments": whole.tool_calls[0].arguments}

    common = {"id": "i", "created": 1, "model": "m", "fingerprint": "f", "usage": {}, "extension": {}}
    message = completion(**common, answers=[whole])["choices"][0]["message"]
    assert message["content"] == (said or None)
    assert message["refusal"] is None
    assert [call["type"] for call in message["tool_calls"]] == ["function"] * len(whole.tool_calls)
    assert completion(**common, answers=[whole], legacy=True)["choices"][0]["message"]["function_call"] == older


def test_reasoning_never_follows_a_call() -> None:
    """drop-in 8: a call is a part of the answer."""
    choice = Choice(chain(1), show_stages=True)
    events = [Delta(0, "", tool_calls=(ToolCallDelta(0, "c", "f"),)), Delta(0, "", "late")]
    assert [piece.reasoning for event in events for piece in choice.read(event)] == [False]


def asked(**fields: Any) -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return decode_chat(json.dumps(body).encode(), RequestLimits()).asked


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


def test_tools_as_they_are_read() -> None:
    """drop-in 20: every way to choose; for a server that knows tools the fields stay as they came."""
    other = {"type": "function", "function": {"name": "g"}}
    both = (Tool("f", "d", {"type": "object"}), Tool("g"))
    for choice, expected in (
        (None, Tools(both)),
        ("auto", Tools(both)),
        ("required", Tools(both, "required")),
        ({"type": "function", "function": {"name": "g"}}, Tools(both, "named", "g")),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [other]}},
            Tools(both[1:], "required"),
        ),
        ("none", None),
    ):
        found = asked(tools=[TOOL, other], tool_choice=choice)
        assert found.tools == expected
        assert found.native["tools"] == [TOOL, other]
        assert found.native.get("tool_choice") == choice
    assert asked(tools=[TOOL], parallel_tool_calls=False).tools == Tools(both[:1], parallel=False)
    assert asked(tools=[], parallel_tool_calls=True) == asked()


def test_functions_are_read_as_tools() -> None:
    """drop-in 20: at most one call; a server is sent the newer form."""
    found = asked(functions=[FUNCTION], function_call={"name": "f"})
    assert found.tools == Tools((Tool("f", "d", {"type": "object"}),), "named", "f", parallel=False)
    assert found.native == {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}
    assert asked(functions=[FUNCTION], function_call="none").tools is None


def test_older_calls_and_results_are_read_as_newer_ones() -> None:
    """drop-in 20, 21."""
    call = {"name": "f", "arguments": "{}"}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "assistant", "content": "So.", "tool_calls": []},
    ]
    _, said, result, last = decode_chat(
        json.dumps({"model": "m", "messages": turns}).encode(), RequestLimits()
    ).messages
    (made,) = said.extra["tool_calls"]
    assert (made["type"], made["function"]) == ("function", call)
    assert said.extra["content"] is None
    assert (result.role, result.extra["tool_call_id"]) == ("tool", made["id"])
    assert last.extra == {}


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ("x", "messages[0].tool_calls"),
        (["x"], "messages[0].tool_calls[0]"),
        ([{"function": {}}], "messages[0].tool_calls[0].id"),
        ([{"id": "c"}], "messages[0].tool_calls[0].function"),
        ([{"id": "c", "function": {"name": 1}}], "messages[0].tool_calls[0].function.name"),
        ([{"id": "c", "function": {"name": "f", "arguments": {}}}], "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_calls_of_no_form_are_refused(calls: Any, param: str) -> None:
    """drop-in 24."""
    body = {"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}]}
    with pytest.raises(APIError) as caught:
        decode_chat(json.dumps(body).encode(), RequestLimits())
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("id", [5, {}, [{}, {}]])
@pytest.mark.parametrize("role", ["tool", "user"])
def test_a_result_names_its_call_by_a_string(role: str, id: Any) -> None:
    """drop-in 24."""
    body = {"model": "m", "messages": [{"role": role, "content": "42", "tool_call_id": id}]}
    with pytest.raises(APIError) as caught:
        decode_chat(json.dumps(body).encode(), RequestLimits())
    assert (caught.value.status, caught.value.param) == (400, "messages[0].tool_call_id")


@pytest.mark.parametrize(
    ("fields", "constraint", "native"),
    [
        ({"response_format": {"type": "text"}}, None, {}),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object"), ...),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
            Constraint("json_schema", '{"type":"object"}'),
            ...,
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": None}}},
            Constraint("json_schema", "{}"),
            ...,
        ),
        ({"modelnet": {"constraint": {"regex": "a+"}}}, Constraint("regex", "a+"), {}),
        ({"modelnet": {"constraint": {"grammar": "start: X"}}}, Constraint("grammar", "start: X"), {}),
        ({"guided_regex": "a+"}, Constraint("regex", "a+"), ...),
        ({"guided_json": '{"type": "object"}'}, Constraint("json_schema", '{"type":"object"}'), ...),
        ({"guided_json": {"type": "object"}}, Constraint("json_schema", '{"type":"object"}'), ...),
        ({"guided_choice": ['"', "b"]}, Constraint("grammar", 'start: "\\"" | "b"'), ...),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Constraint("regex", "a+"), ...),
        ({"structured_outputs": {"json_object": True}}, Constraint("json_object"), ...),
        ({"structured_outputs": {"structural_tag": "x"}}, None, ...),
    ],
)
def test_formats_as_they_are_read(fields: dict[str, Any], constraint: Constraint | None, native: Any) -> None:
    """drop-in 22: `...` stands for the fields as they came."""
    found = asked(**fields)
    assert found.constraint == constraint
    assert found.native == (fields if native is ... else native)
    assert bool(found.only_ours) == ("modelnet" in fields)
