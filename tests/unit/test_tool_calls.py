"""Tool calls in the bytes of an answer, and tools in a conversation's text."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.types import Message, TokenLogprob, ToolCallDelta
from strategies.engine import Constraint, Tool, Tools
from strategies.engine.conversation import told_of_tools
from strategies.engine.guiding import CallsOut, calls_of, finish_of
from strategies.prompting import PASS_THROUGH, PromptSet


def block(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


class Read:
    """An answer as a client puts it together."""

    def __init__(self, out: CallsOut, portions: list[bytes]) -> None:
        self.text = b""
        self.deltas: list[ToolCallDelta] = []
        self.orders: list[str] = []
        for portion in portions:
            self._take(out.feed(portion))
        self._take(out.finish())

    def _take(self, parted: object) -> None:
        for data, _ in parted.text:  # type: ignore[attr-defined]
            self.text += data
            self.orders.append("text")
        for delta in parted.calls:  # type: ignore[attr-defined]
            self.deltas.append(delta)
            self.orders.append("call")

    @property
    def calls(self) -> list[tuple[str | None, str]]:
        found = []
        for _, parts in itertools.groupby(self.deltas, lambda delta: delta.index):
            listed = list(parts)
            found.append((listed[0].name, "".join(part.arguments for part in listed)))
        return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


ANSWERS = [
    ("Plain text.", "Plain text.", []),
    ("", "", []),
    ("a < b <tool_ no call", "a < b <tool_ no call", []),
    ("<tool_call", "<tool_call", []),
    (block("f", "{}"), "", [("f", "{}")]),
    ("\n " + block("f", "{}"), "", [("f", "{}")]),
    ("Let me see.\n" + block("f", '{"a": 1}'), "Let me see.\n", [("f", '{"a": 1}')]),
    (block("f", "{}") + "\n" + block("g-2", '{"x":"y"}'), "", [("f", "{}"), ("g-2", '{"x":"y"}')]),
    (
        "中 👍" + block("f", '{"city": "北京 👍", "q": "\\"}{ </tool_call> <tool_call> \\\\"}'),
        "中 👍",
        [("f", '{"city": "北京 👍", "q": "\\"}{ </tool_call> <tool_call> \\\\"}')],
    ),
    (block("f", '{"a": {"b": [[{"c": {}}], "]}"]}}'), "", [("f", '{"a": {"b": [[{"c": {}}], "]}"]}}')]),
]


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS)
@given(st.data())
def test_text_and_calls_do_not_depend_on_how_the_answer_is_cut(
    answer: str, text: str, calls: list[tuple[str, str]], data: st.DataObject
) -> None:
    read = Read(CallsOut(), cut(answer.encode(), data.draw(st.lists(st.integers(0, 300), max_size=30))))
    assert (read.text.decode(), read.calls) == (text, calls)
    assert "text" not in read.orders[read.orders.index("call") :] if "call" in read.orders else True


def test_one_byte_at_a_time() -> None:
    answer = ("Hm.\n" + block("f", '{"city": "北京"}') + "\n" + block("g", "{}")).encode()
    read = Read(CallsOut(), [answer[at : at + 1] for at in range(len(answer))])
    assert (read.text, read.calls) == (b"Hm.\n", [("f", '{"city": "北京"}'), ("g", "{}")])


def test_id_and_name_come_once_with_the_first_part() -> None:
    read = Read(CallsOut(), [block("f", '{"a": 1}').encode(), b"\n", block("f", "{}").encode()])
    firsts = [delta for delta in read.deltas if delta.name is not None]
    assert [(d.index, d.arguments) for d in firsts] == [(0, ""), (1, "")]
    assert all(re.fullmatch(r"call_[A-Za-z0-9]{24}", delta.id or "") for delta in firsts)
    assert firsts[0].id != firsts[1].id
    assert all(delta.id is None for delta in read.deltas if delta.name is None)


def test_arguments_come_as_they_are_written() -> None:
    out = CallsOut()
    out.feed(b'<tool_call>\n{"name": "f", "arguments": {"a"')
    assert [delta.arguments for delta in out.feed(b": 1").calls] == [": 1"]


def test_a_call_that_is_cut_leaves_what_there_was() -> None:
    read = Read(CallsOut(), [b'<tool_call>\n{"name": "f", "arguments": {"a": "x'])
    assert read.calls == [("f", '{"a": "x')]
    assert Read(CallsOut(), [b'<tool_call>\n{"name": "f']).calls == []


def test_half_a_mark_at_the_end_is_text() -> None:
    assert Read(CallsOut(), [b"a <tool", b"_c"]).text == b"a <tool_c"
    out = CallsOut()
    out.feed(b"a <tool")
    assert out.finish(cut=True).text == ((b"a ", None),), "of an answer that was cut it is half a call"


def test_where_the_text_has_a_form_a_mark_counts_at_the_beginning_only() -> None:
    quoted = b'{"a": "<tool_call>"}'
    assert Read(CallsOut(first_only=True), [quoted[:8], quoted[8:]]).text == quoted
    read = Read(CallsOut(first_only=True), [b"<tool", block("f", "{}").encode()[5:]])
    assert (read.text, read.calls) == (b"", [("f", "{}")])
    assert calls_of(Constraint("json_object"), Tools((Tool("f"),))) is not None
    assert calls_of(None, Tools((Tool("f"),), "none")) is None
    assert calls_of(None, None) is None


def test_a_portion_keeps_what_is_known_of_it() -> None:
    """A token that a mark cuts is told with the part of it that is text."""
    out = CallsOut()
    tokens = [TokenLogprob(b"Hi", -0.5), TokenLogprob(b".<tool", -1.0)]
    first, second = (out.feed(token.text, token) for token in tokens)
    third = out.feed(b"_call>")
    assert first.text == ((b"Hi", tokens[0]),)
    assert second.text == ()
    assert third.text == ((b".", tokens[1]),)


def test_whole_calls_are_an_end_of_their_own() -> None:
    out = CallsOut()
    assert finish_of(out, "stop") == "stop"
    out.feed(block("f", "{}").encode())
    assert finish_of(out, "stop") == "tool_calls"
    assert finish_of(out, "length") == "length"
    assert finish_of(None, "stop") == "stop"


# The conversation

WEATHER = Tool("get_weather", "The weather of a city.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"北京"}'}}
ASKED = Message("user", "How is the weather?")
CALLED = Message("assistant", "", {"tool_calls": [CALL], "content": None})
RESULT = Message("tool", "sunny", {"tool_call_id": "call_1"})
CALLED_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'


def told(*messages: Message, tools: Tools | None = None, may_call: bool = True) -> tuple[Message, ...]:
    return told_of_tools(messages, tools, PASS_THROUGH, may_call=may_call)


def test_a_conversation_without_tools_is_left_alone() -> None:
    messages = (ASKED, Message("assistant", "Fine.", {"name": "a"}))
    assert told(*messages) == messages


def test_calls_and_results_are_text() -> None:
    assert told(ASKED, CALLED, RESULT) == (
        ASKED,
        Message("assistant", CALLED_TEXT),
        Message("user", "<tool_response>\nsunny\n</tool_response>"),
    )


def test_text_beside_a_call_stays_before_it() -> None:
    said = told(ASKED, Message("assistant", "Let me see.", {"tool_calls": [CALL], "name": "x"}), RESULT)[1]
    assert said == Message("assistant", f"Let me see.\n{CALLED_TEXT}", {"name": "x"})


def test_results_stand_in_the_order_of_their_calls() -> None:
    calls = [{**CALL, "id": id} for id in ("a", "b", "c")]
    results = [Message("tool", id.upper(), {"tool_call_id": id}) for id in ("c", "a", "b")]
    said = told(ASKED, Message("assistant", "", {"tool_calls": calls}), *results)
    assert re.findall(r"\n(\w)\n", said[-1].content) == ["A", "B", "C"]
    assert len(said) == 3


def test_what_the_user_says_after_a_result_stays_in_one_turn() -> None:
    """Some templates demand that turns alternate."""
    said = told(ASKED, CALLED, RESULT, Message("user", "And tomorrow?"))
    assert [message.role for message in said] == ["user", "assistant", "user"]
    assert said[-1].content == "<tool_response>\nsunny\n</tool_response>\n\nAnd tomorrow?"


def test_the_older_form_of_calls() -> None:
    said = told(
        ASKED,
        Message("assistant", "", {"function_call": {"name": "get_weather", "arguments": '{"city":"北京"}'}}),
        Message("function", "sunny", {"name": "get_weather"}),
    )
    assert [message.content for message in said[1:]] == [CALLED_TEXT, "<tool_response>\nsunny\n</tool_response>"]


@pytest.mark.parametrize("arguments", ["{no json", '"text"', "", None, "[1]"])
def test_arguments_that_are_no_object_are_shown_all_the_same(arguments: str | None) -> None:
    call = {"id": "x", "function": {"name": "f", "arguments": arguments}}
    said = told(ASKED, Message("assistant", "", {"tool_calls": [call]}))[1].content
    json.loads(said.removeprefix("<tool_call>").removesuffix("</tool_call>"))


@pytest.mark.parametrize("calls", ["x", [1], [{}], [{"function": 3}], {"a": 1}])
def test_calls_that_are_none_do_no_harm(calls: object) -> None:
    assert len(told(ASKED, Message("assistant", "Yes.", {"tool_calls": calls}))) == 2


def test_tools_are_told_in_the_system_message() -> None:
    one = told(Message("system", "Be kind."), ASKED, tools=Tools((WEATHER,)))
    assert one[0].role == "system"
    assert one[0].content.startswith("Be kind.\n\n# Tools")
    listed = one[0].content.split("<tools>\n")[1].split("\n</tools>")[0]
    function = {"name": "get_weather", "description": "The weather of a city.", "parameters": WEATHER.parameters}
    assert [json.loads(line) for line in listed.splitlines()] == [{"type": "function", "function": function}]
    other = told(ASKED, tools=Tools((WEATHER, Tool("now"))))
    assert [message.role for message in other] == ["system", "user"]
    assert '{"name": "now", "parameters": {"type": "object", "properties": {}}}' in other[0].content


@pytest.mark.parametrize(
    ("tools", "said", "unsaid"),
    [
        (Tools((WEATHER,)), "answer directly", "must be"),
        (Tools((WEATHER,), "required"), "must be a call.", "answer directly"),
        (Tools((WEATHER,), "named", "get_weather"), "must be a call of get_weather.", "answer directly"),
        (Tools((WEATHER,), parallel=False), "one call at most", "must be"),
        (Tools((WEATHER,), "none"), "You can't call any", "<tool_call>"),
    ],
)
def test_what_is_to_be_done_with_them(tools: Tools, said: str, unsaid: str) -> None:
    text = told(ASKED, tools=tools)[0].content
    assert said in text
    assert unsaid not in text


def test_whoever_does_not_write_the_answer_is_told_that_it_can_not_call() -> None:
    text = told(ASKED, tools=Tools((WEATHER,), "required"), may_call=False)[0].content
    assert "You can't call any" in text
    assert "get_weather" in text
    assert "<tool_call>" not in text


def test_they_are_told_in_the_language_of_the_question() -> None:
    assert "# 工具" in told(Message("user", "北京的天气怎么样？"), tools=Tools((WEATHER,)))[0].content


def test_a_prompt_set_may_word_it_otherwise() -> None:
    prompts = PromptSet.from_mapping("p", {"tools": {"offer": "Only {tools}!", "auto": {"en": ""}}})
    said = told_of_tools((ASKED,), Tools((Tool("f", "takes {name} and {tools}"),)), prompts, may_call=True)[0].content
    assert said.startswith('Only {"type": "function"')
    assert "takes {name} and {tools}" in said
    assert "<tool_call>" not in said


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"tools": {"offer": "nothing"}}, "tools.offer.en: needs {tools}, found none"),
        ({"tools": {"auto": {"zh": "{tools}"}}}, "tools.auto.zh: needs no placeholder, found {tools}"),
        ({"tools": {"offr": "x"}}, "tools.offr: unknown key, expected one of offer, auto"),
        ({"tools": {"one": 3}}, "tools.one: expected a mapping of en, zh"),
    ],
)
def test_a_bad_wording_is_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        PromptSet.from_mapping("p", mapping)
