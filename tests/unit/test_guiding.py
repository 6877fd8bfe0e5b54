"""What an answer may be held to, and which pieces it may then go on with."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from guides import MIXED, OBJECT, guide, inventory, pieces, say, schema, vocabulary

from backends.errors import RequestRejected
from backends.types import Vocabulary
from strategies.engine import Constraint, Tool, Tools
from strategies.engine.guiding import bounds, check, tokenizers
from strategies.engine.guiding.grammars import MOST_CALLS
from strategies.engine.guiding.tokenizers import tokenizer_of

pytestmark = pytest.mark.anyio


# Which pieces come next


async def test_a_piece_may_come_if_the_text_with_it_may() -> None:
    g = await guide(schema(OBJECT))
    assert pieces(MIXED, g) == {b"{", b'{"'}
    say(MIXED, g, b'{"')
    assert pieces(MIXED, g) == {b"a"}
    say(MIXED, g, b'a": "')
    assert {b'"', b"ab", b"a", b"\\", "中".encode()[:1]} <= pieces(MIXED, g)
    assert not {b"\n", b"\xff", b""} & pieces(MIXED, g)
    say(MIXED, g, b'x"')
    assert pieces(MIXED, g) == {b"}"}
    assert not g.may_end
    say(MIXED, g, b"}")
    assert g.may_end
    assert pieces(MIXED, g) == {b""}


async def test_half_a_character_is_completed() -> None:
    g = await guide(Constraint("regex", "[中国é]+"))
    assert pieces(MIXED, g) == {"中".encode()[:1], "国".encode()[:1], "é".encode()[:1]}
    say(MIXED, g, "中".encode()[:1])
    assert pieces(MIXED, g) == {"中".encode()[1:2]} == {b"\xb8"}
    say(MIXED, g, "中".encode()[1:2])
    assert pieces(MIXED, g) == {"中".encode()[2:]}
    say(MIXED, g, "中".encode()[2:])
    assert b"" in pieces(MIXED, g)


async def test_the_end_is_a_piece_where_tokenizers_differ_and_all_ends_where_they_do_not() -> None:
    g = await guide(Constraint("regex", "a*"))
    assert g.allowed()[0] == 1
    same = inventory(*[vocabulary(b"aa", b"aa", ends=3)] * 2)
    g = await guide(Constraint("regex", "a*"), same)
    may = {id for id, value in enumerate(g.allowed()) if value}
    assert may == {ord("a"), 256, 257, *same.ends}, "two tokens with the same bytes, three ends, and no control token"
    g.said(max(same.ends))
    assert len(same.ends) == 3


async def test_what_was_not_allowed_can_not_be_said() -> None:
    g = await guide(Constraint("regex", "ab"))
    with pytest.raises(ValueError, match="does not fit"):
        g.said(MIXED.pieces.index(b"b"))
    with pytest.raises(ValueError, match="does not fit"):
        g.said(0)
    g.said(MIXED.pieces.index(b"ab"))
    g.said(0)


async def test_models_without_a_way_to_go_on_are_told_apart_from_an_end() -> None:
    """No token of theirs has the byte that must come next."""
    poor = inventory(Vocabulary((b"a", b"b", b""), frozenset((2,)), "poor"))
    g = await guide(Constraint("regex", "ac"), poor)
    with pytest.raises(RequestRejected, match="the models have no token that goes on so"):
        g.said(0)
        g.allowed()


async def test_a_grammar_that_turns_out_too_costly_never_looks_like_an_end() -> None:
    wide = Constraint("grammar", "start: r0\n" + "".join(f'r{n}: r{n + 1} | "a"\n' for n in range(1900)) + 'r1900: "b"')
    check(wide)
    g = await guide(wide)
    with pytest.raises(RequestRejected, match="too complex"):
        for _ in range(5):
            say(MIXED, g, next(iter(sorted(pieces(MIXED, g) - {b""}))))


async def test_json_has_room_for_one_space_and_no_more() -> None:
    for text in (b'{"a":"x"}', b'{"a": "x"}'):
        g = await guide(schema(OBJECT))
        say(MIXED, g, text)
    g = await guide(schema(OBJECT))
    say(MIXED, g, b'{"a": ')
    assert b" " not in pieces(MIXED, g)


@pytest.mark.parametrize("seed", range(150))
async def test_whatever_is_allowed_leads_to_what_was_asked(seed: int) -> None:
    """A walk at random over allowed pieces that ends is JSON of the schema; one that goes on is never stuck."""
    draw = random.Random(seed)
    asked = _random_schema(draw, 0)
    check(schema(asked))
    g = await guide(schema(asked))
    text, closing = b"", [MIXED.pieces.index(mark) for mark in (b'"', b"}", b"]")]
    for step in range(600):
        may = [id for id, value in enumerate(g.allowed()) if value]
        if step > 60:  # long enough: whatever comes closer to an end
            may = ([0] if 0 in may else []) or [id for id in closing if id in may][:1] or may
        piece = draw.choice(may)
        g.said(piece)
        text += MIXED.pieces[piece]
        if piece == 0:
            jsonschema.validate(json.loads(text), asked, format_checker=jsonschema.FormatChecker())
            return
    pytest.fail(f"no end: {text!r}")


def _random_schema(draw: random.Random, depth: int) -> dict[str, Any]:
    kinds: Sequence[str] = ("string", "integer", "number", "boolean", "null", "enum", "pattern", "format")
    kind = draw.choice(kinds if depth > 2 else (*kinds, "array", "object", "object", "anyOf"))
    match kind:
        case "string":
            return {"type": "string", **draw.choice([{}, {"maxLength": 4}, {"minLength": 1, "maxLength": 3}])}
        case "integer":
            return {"type": "integer", **draw.choice([{}, {"minimum": -5, "maximum": 120}, {"multipleOf": 7}])}
        case "number":
            return {"type": "number", "minimum": 0.5, "exclusiveMaximum": 100}
        case "enum":
            return {"enum": draw.sample(["a", "中国", "é\n", 'x"y', 1, 2.5, None, True, [1], {"k": "v"}], 3)}
        case "pattern":
            return {"type": "string", "pattern": draw.choice(["^[a-z]{1,5}$", "^(中|国){2,4}$", "^[0-9]{3}-[A-Z]$"])}
        case "format":
            return {"type": "string", "format": draw.choice(["date", "uuid", "ipv4"])}
        case "array":
            return {"type": "array", "items": _random_schema(draw, depth + 1), **draw.choice([{}, {"minItems": 2}])}
        case "anyOf":
            return {"anyOf": [_random_schema(draw, depth + 1), _random_schema(draw, depth + 1)]}
        case "object":
            names = draw.sample(["a", "b", "中文", "with space", 'q"q'], draw.randint(0, 4))
            return {
                "type": "object",
                "properties": {name: _random_schema(draw, depth + 1) for name in names},
                "required": draw.sample(names, draw.randint(0, len(names))),
                "additionalProperties": draw.choice([False, {"type": "boolean"}]),
            }
    return {"type": kind}


# Tool calls

TOOLS = (Tool("f", "", OBJECT), Tool("ff"))


def call(name: str, arguments: str) -> bytes:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'.encode()


F, FF = call("f", '{"a": "x"}'), call("ff", "{}")


@pytest.mark.parametrize(
    ("tools", "constraint", "answers", "wrong"),
    [
        (
            Tools(TOOLS),
            None,
            [b"", b"Hi <tool_", F, b"Let me see.\n" + F, F + b"\n" + FF + b"\n" + FF, b"\n" + FF],
            [
                call("g", "{}"),
                call("f", "{}"),
                call("ff", '{"b": 1}'),
                FF + b" and",
                F + FF,
                b"<tool_call>x",
                b"\xff",
                b"\xe4x",
            ],
        ),
        (Tools(TOOLS, "required"), None, [F, FF, FF + b"\n" + F], [b"", b"Hi", b" " + F]),
        (Tools(TOOLS, "named", "f"), None, [F], [FF, b"", F + b"\n" + F]),
        (Tools(TOOLS, parallel=False), None, [b"Hi", b"Hi " + F], [F + b"\n" + F]),
        (Tools(TOOLS, "required", parallel=False), None, [F], [b"Hi", F + b"\n" + F]),
        (Tools(TOOLS, "none"), None, [b"Hi", b"", b"<tool_cal>"], [b"<tool_call>", F]),
        (Tools(TOOLS), schema(OBJECT), [F, b'{"a": "<tool_call>"}'], [b"Hi", b"", b"Hi " + F]),
        (Tools(TOOLS), Constraint("regex", "[a-z]+"), [F, b"abc"], [b"", b"abc " + F]),
        (Tools(TOOLS), Constraint("grammar", 'start: "x" | "y"'), [F, b"x"], [b"z", b"x" + F]),
        (Tools(TOOLS, "required"), Constraint("json_object"), [F], [b"{}"]),
        (Tools(TOOLS, "none"), schema(OBJECT), [b'{"a": ""}'], [F]),
    ],
)
async def test_what_an_answer_with_tools_may_be(
    tools: Tools, constraint: Constraint | None, answers: list[bytes], wrong: list[bytes]
) -> None:
    check(constraint, tools)
    for text in answers:
        g = await guide(constraint, tools=tools)
        say(MIXED, g, text)
        assert g.may_end, text
    for text in wrong:
        g = await guide(constraint, tools=tools)
        with pytest.raises(ValueError, match="does not fit"):
            say(MIXED, g, text)
            g.said(0)


async def test_calls_come_to_an_end() -> None:
    g = await guide(None, tools=Tools((Tool("f"),), "required"))
    say(MIXED, g, b"\n".join([call("f", "{}")] * MOST_CALLS))
    assert pieces(MIXED, g) == {b""}


async def test_a_mark_may_come_in_one_piece_or_in_several() -> None:
    g = await guide(None, tools=Tools(TOOLS, "required"))
    assert pieces(MIXED, g) == {b"<", b"<tool"} - ({b"<tool"} - set(MIXED.pieces))
    same = inventory(vocabulary(b"<tool_call>", b"<tool_call>\n{", b"</tool_call>", b"><"))
    g = await guide(None, same, Tools(TOOLS, "required"))
    assert pieces(same, g) == {b"<", b"<tool_call>", b"<tool_call>\n{"}


# Tokenizers are kept


def test_one_tokenizer_per_table_of_pieces_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = vocabulary(b"xy")
    assert tokenizer_of(inventory(shared)) is tokenizer_of(inventory(shared, shared))
    monkeypatch.setattr(tokenizers, "MOST_PIECES", 1000)
    several = [inventory(vocabulary(str(n).encode() * 2)) for n in range(6)]
    kept = [tokenizer_of(each) for each in several]
    assert len(tokenizers._kept) == 3
    assert tokenizer_of(several[-1]) is kept[-1]
    assert tokenizer_of(several[0]) is not kept[0]
    monkeypatch.setattr(tokenizers, "MOST_PIECES", 1)
    assert tokenizer_of(several[1]) is tokenizer_of(several[1]), "one is kept, however large"


def test_compiling_raises_what_it_raised_and_leaves_other_threads_their_stack() -> None:
    import threading

    before = threading.stack_size()
    with pytest.raises(ZeroDivisionError):
        bounds.with_deep_stack(lambda: 1 // 0)
    assert bounds.with_deep_stack(lambda: re.escape("x")) == "x"
    assert threading.stack_size() == before
