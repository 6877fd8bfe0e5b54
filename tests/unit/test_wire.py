"""The wire format by itself: transcripts, the order of what is shown, writing and reading."""

from __future__ import annotations

import json

import pytest
from edge import edge, fake, golden, without_chance
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.types import Usage
from gateway.wire.answers import Choice, Piece, usage_value
from gateway.wire.decode import RequestLimits, decode_chat
from gateway.wire.errors import APIError
from gateway.wire.sse import ChunkWriter, event
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
        ("stages", "a>b|c", {"modelnet": {"stages": True}, "stream_options": {"include_usage": True}}),
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
