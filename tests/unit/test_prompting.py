"""Role templates around whole conversations, the sets that ship, and the cutting of reasoning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from backends.types import Message
from strategies.planning.plan import Role
from strategies.prompting import PASS_THROUGH, PromptSet, compose, cut_reasoning, language_of
from strategies.topology import Shape

PROMPTS = Path(__file__).parents[2] / "config" / "prompts"
SMALL = PromptSet.from_mapping(
    "small",
    {
        "default": {
            "solver": {"en": "{question} Think.", "zh": "{question}请思考。"},
            "reviewer": {"en": "Q: {question} A: {answer} Review."},
            "verifier": {"en": "{answer}/{question}", "zh": "答：{answer} 问：{question}"},
        },
        "single": {"solver": ""},
        "si": {"verifier": {"en": "si {answer}"}},
    },
)
SYSTEM = Message("system", "Be kind.")
EARLIER = (Message("user", "Hi"), Message("assistant", "Hello {question}"))


def load(name: str) -> PromptSet:
    return PromptSet.from_mapping(name, yaml.safe_load((PROMPTS / f"{name}.yaml").read_text("utf-8")))


def test_the_last_user_message_is_rewritten_and_all_else_stays() -> None:
    asked = Message("user", "What is 2+2?", {"name": "eve"})
    told = compose((SYSTEM, *EARLIER, asked), "solver", "s2p", SMALL)
    assert told == (SYSTEM, *EARLIER, Message("user", "What is 2+2? Think.", {"name": "eve"}))


def test_a_reader_is_given_question_and_answer_in_the_last_user_message() -> None:
    told = compose((SYSTEM, Message("user", "Why?")), "reviewer", "si", SMALL, "Because.")
    assert told == (SYSTEM, Message("user", "Q: Why? A: Because. Review."))


@pytest.mark.parametrize("last", [Message("tool", "42", {"tool_call_id": "c"}), Message("assistant", "It is")])
def test_where_the_last_message_is_not_the_users_readers_get_one_more(last: Message) -> None:
    messages = (SYSTEM, Message("user", "Why?"), last)
    assert compose(messages, "solver", "s2p", SMALL) == messages
    assert compose(messages, "reviewer", "s2p", SMALL, "So.") == (*messages, Message("user", "Q: Why? A: So. Review."))


def test_without_any_user_message_the_last_one_is_the_question() -> None:
    messages = (Message("system", "Tell a joke."),)
    assert compose(messages, "solver", "s2p", SMALL) == messages
    assert compose(messages, "reviewer", "s2p", SMALL, "Ha.")[-1] == Message("user", "Q: Tell a joke. A: Ha. Review.")
    assert compose((), "reviewer", "s2p", SMALL, "Ha.") == ()


@pytest.mark.parametrize(
    "text",
    [
        "{answer}",
        "{question}",
        "{0} {} {x!r:>{w}}",
        "}{",
        "\\1 \\g<0>",
        "$question %s",
        "f(x) = {x: y}",
        "{{question}}",
    ],
)
def test_braces_in_questions_and_answers_are_only_text(text: str) -> None:
    (told,) = compose([Message("user", text)], "reviewer", "si", SMALL, "[" + text + "]")
    assert told.content == f"Q: {text} A: [{text}] Review."


def test_an_empty_answer_is_an_answer() -> None:
    messages = (Message("user", "Why?"), Message("tool", "42"))
    assert compose(messages, "reviewer", "si", SMALL, "")[-1].content == "Q: Why? A:  Review."


def test_content_of_several_parts_keeps_what_is_not_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [image, {"type": "text", "text": "What"}, {"type": "text", "text": " is it?"}]
    asked = Message("user", "What is it?", {"content": parts, "name": "eve"})
    (told,) = compose([asked], "solver", "s2p", SMALL)
    assert told.content == "What is it? Think."
    assert told.extra == {"content": [image, {"type": "text", "text": "What is it? Think."}], "name": "eve"}
    assert parts[1] == {"type": "text", "text": "What"}, "the client's message is not changed"
    (told,) = compose([Message("user", "", {"content": [image]})], "solver", "s2p", SMALL)
    assert told.extra["content"] == [{"type": "text", "text": " Think."}, image]


def test_templates_fall_back_from_shape_to_default_and_from_language_to_language() -> None:
    assert SMALL.template("si", "verifier", "en") == "si {answer}"
    assert SMALL.template("si", "verifier", "zh") == "si {answer}", "a shape's wording before the default's language"
    assert SMALL.template("s2p", "verifier", "zh").startswith("答")
    assert SMALL.template("s2p", "reviewer", "zh").startswith("Q:")
    assert SMALL.template("single", "solver", "zh") == ""
    assert PASS_THROUGH.template("si", "verifier", "en") == ""


def test_an_empty_template_leaves_the_conversation_as_it_is() -> None:
    messages = (SYSTEM, Message("user", "Why?"))
    assert compose(messages, "solver", "single", SMALL) == messages
    assert compose(messages, "verifier", "si", PASS_THROUGH, "Because.") == messages


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France?", "en"),
        ("法国的首都是哪里？", "zh"),
        ("请解释 transformer 里的 attention 机制", "zh"),
        ("What does 你好 mean in English?", "en"),
        ("帮我改正这段代码：\n```python\ndef add(a, b):\n    return a - b  # wrong operator here\n```", "zh"),
        ("```\n打印\n```", "zh"),
        ("12 + 7 = ?", "en"),
        ("", "en"),
        ("ありがとうございます。とても助かりました。", "en"),
        ("안녕하세요", "en"),
        ("Объясни, пожалуйста", "en"),
        ("𠀀𠀁", "zh"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language


def test_the_language_is_that_of_the_last_user_message() -> None:
    told = compose((Message("system", "你是一个助手"), Message("user", "Why?")), "verifier", "s2p", SMALL, "因为")
    assert told[-1].content == "因为/Why?"
    told = compose((Message("system", "You help."), Message("user", "为什么？")), "verifier", "s2p", SMALL, "So")
    assert told[-1].content == "答：So 问：为什么？"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([], "prompt set: expected a mapping of default, single, si, pi, s2p, p2s, mixed, tools, found list"),
        ({"serial": {}}, "serial: unknown key, expected one of default, single"),
        ({"si": None}, "si: expected a mapping of solver, reviewer, verifier, found NoneType"),
        ({"si": {"judge": ""}}, "si.judge: unknown key"),
        ({"si": {"solver": 3}}, "si.solver: expected a mapping of en, zh, found int"),
        ({"si": {"solver": {"de": ""}}}, "si.solver.de: unknown key"),
        ({"si": {"solver": {"en": None}}}, "si.solver.en: expected text, found NoneType"),
        ({"si": {"solver": {"en": "Think."}}}, "si.solver.en: a solver's template needs {question}"),
        ({"si": {"verifier": {"zh": "{question}"}}}, "si.verifier.zh: a verifier's template needs {answer}"),
        (
            {"si": {"solver": {"en": "{question}{answer}"}}},
            "si.solver.en: a solver's template has no {answer}, only {question}",
        ),
        (
            {"si": {"reviewer": {"en": "{answer} {Question}"}}},
            "si.reviewer.en: a reviewer's template has no {Question}, only {question} and {answer}",
        ),
        ({True: {}}, "True: unknown key"),
    ],
)
def test_a_bad_set_is_refused_with_the_path_of_the_key(mapping: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        PromptSet.from_mapping("bad", mapping)


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize("question", ["Why is the sky blue?", "天空为什么是蓝色的？"])
def test_the_shipped_sets_tell_every_reader_question_and_answer(name: str, question: str) -> None:
    prompts = load(name)
    for shape in ("si", "s2p", "p2s", "mixed"):
        contents = []
        for role in get_args(Role):
            (told,) = compose(
                [Message("user", question)], role, shape, prompts, None if role == "solver" else "-THE-ANSWER-"
            )
            assert question in told.content
            assert told.content != question
            assert ("-THE-ANSWER-" in told.content) == (role != "solver")
            assert language_of(told.content) == language_of(question)
            contents.append(told.content)
        assert len(set(contents)) == 3


@pytest.mark.parametrize("shape", ["single", "pi"])
def test_in_the_default_set_a_single_model_and_a_group_are_transparent_in_the_papers_they_are_solvers(
    shape: Shape,
) -> None:
    messages = (SYSTEM, Message("user", "Why?"))
    assert compose(messages, "solver", shape, load("default")) == messages
    assert compose(messages, "solver", shape, load("paper")) == compose(messages, "solver", "s2p", load("default"))


MARKS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  plain \n", "plain"),
        ("<think>hm</think>\n\n42", "42"),
        ("<think></think>42", "42"),
        ("so <think>a</think>it <think>b</think>is", "so it is"),
        ("hm, the block was opened in the prompt</think> 42", "42"),
        ("a</think>b</think>42", "42"),
        ("<think>a</think>b</think>42", "42"),
        ("<think>a<think>b</think>c</think>42", "42"),
        ("<think>I use <think> here</think>42", "42"),
        ("41 <think>no, wait", "41"),
        ("<think>a</think>41<think>no, wait", "41"),
        ("<think>only thoughts, no budget left ", "only thoughts, no budget left"),
        ("<think>only thoughts</think>\n", "only thoughts"),
        ("</think>", ""),
        ("", ""),
        ("<THINK>a</THINK>b", "<THINK>a</THINK>b"),
    ],
)
def test_reasoning_is_cut(text: str, expected: str) -> None:
    assert cut_reasoning(text, MARKS) == expected


def test_marks_are_plain_text_may_be_equal_but_not_empty() -> None:
    assert cut_reasoning("a(*b*)c", ("(*", "*)")) == "ac"
    assert cut_reasoning("a ***b*** c ***d***", ("***", "***")) == "a  c"
    for marks in (("", "x"), ("x", "")):
        with pytest.raises(ValueError, match="not empty"):
            cut_reasoning("a", marks)


def test_many_marks_take_linear_time() -> None:
    assert cut_reasoning("<think>" * 100_000 + "x" + "</think>" * 100_000 + "42", MARKS) == "42"
