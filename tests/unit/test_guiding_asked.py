"""Which forms, schemas and grammars an answer can be held to, and which are refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from guides import MIXED, OBJECT, guide, say, schema

from backends.errors import RequestRejected
from strategies.engine import Constraint, Tool, Tools
from strategies.engine.guiding import BadConstraint, bounds, check

pytestmark = pytest.mark.anyio


GOOD = [
    Constraint("json_object"),
    schema(OBJECT),
    schema(True),
    schema(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d", "type": "integer"}
    ),
    schema({"properties": {"format": {"type": "string", "format": "int64"}}, "default": {"format": "x"}}),
    schema({"enum": [{"format": "password"}, "中国"]}),
    schema(
        {"anyOf": [{"$ref": "#/$defs/tree"}], "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    ),
    schema({"properties": {"default": {"format": "password"}, "enum": {"type": "integer", "maximum": 2**60 + 1}}}),
    schema({"const": 2**53 - 1}),
    schema({"enum": [1e22, 0.1, -1e-07, 123456.789012345, True, {"a": [25 * 10**20]}]}),
    Constraint("regex", "[0-9]{3}-[a-z]+/x"),
    Constraint("regex", "^(中|国)+$"),
    Constraint("regex", "a\nb"),
    Constraint("regex", ""),
    Constraint("grammar", 'start: "a" | b\nb: "(" start ")"'),
    Constraint("grammar", 'start: %json {"type": "integer"}'),
    Constraint("grammar", '%llguidance {"no_forcing": false}\nstart: "a" "b" "c"'),
]


@pytest.mark.parametrize("constraint", GOOD, ids=lambda c: f"{c.kind}: {c.source[:30]!r}")
def test_what_can_be_held(constraint: Constraint) -> None:
    check(constraint)
    check(constraint, Tools((Tool("f"),)))


BAD = [
    (schema({"type": "nope"}), "Invalid type: nope"),
    (schema({"type": 5}), "type must be a string"),
    (schema({"properties": [1]}), "properties must be an object"),
    (schema({"$ref": "#/$defs/none"}), "Pointer '/$defs/none' does not exist"),
    (schema({"$ref": "http://127.0.0.1:9/x"}), "Resource 'http://127.0.0.1:9/x' is not present"),
    (schema({"$ref": "file:///etc/passwd"}), "is not present"),
    (schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
    (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
    (schema({"if": {"type": "string"}, "then": {}}), 'Unimplemented keys: ["if", "then"]'),
    (schema({"type": "array", "contains": {}}), 'Unimplemented keys: ["contains"]'),
    (schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
    (schema({"type": "string", "pattern": "(?=a)b"}), "regex parse error: look-around"),
    (schema({"type": "string", "pattern": "a(b"}), "regex parse error: unclosed group"),
    (schema({"enum": []}), "Unsatisfiable schema"),
    (schema({"minimum": 3, "maximum": 1, "type": "integer"}), "Unsatisfiable schema"),
    (schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "Nothing matches it."),
    (schema(False), "Unsatisfiable schema"),
    (schema({"const": 123456789012345678}), "The number 123456789012345678 has too many digits to be held"),
    (schema({"properties": {"a": {"enum": [1, [{"b": 2**64 + 1}]]}}}), "too many digits"),
    (schema({"const": 0.45913173191066836}), "too many digits"),
    (schema({"const": 5.19522696549675e146}), "too many digits"),
    (schema({"const": 10**400}), "too many digits"),
    (schema({"type": "integer", "minimum": 10**30}), "A bound can't be held"),
    (schema({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 1}), "Unsatisfiable schema"),
    (schema([1]), "The schema must be an object."),
    (schema(None), "The schema must be an object."),
    (Constraint("json_schema", "{"), "The schema is not valid JSON"),
    (Constraint("json_schema", '{"const": NaN}'), "failed to parse"),
    (Constraint("json_schema", '{"exclusiveMinimum": -Infinity}'), "failed to parse"),
    (Constraint("json_schema", '{"const": "\\ud800"}'), "failed to parse"),
    (Constraint("regex", "a(b"), 'invalid regex "a(b" (in regex): regex parse error: unclosed group'),
    (Constraint("regex", "(a)\\1"), "backreferences are not supported"),
    (Constraint("regex", "[a&&b]"), "Nothing matches it."),
    (Constraint("regex", "\ud800"), "not valid text"),
    (Constraint("grammar", "start: x"), 'unknown name: "x"'),
    (Constraint("grammar", 'x: "a"'), "no start rule"),
    (Constraint("grammar", ""), "no start rule"),
    (Constraint("grammar", 'start: "a'), "lexer error"),
    (Constraint("grammar", "start: <[5]>"), "Special tokens"),
    (Constraint("grammar", 'start: "a" | <[^3-5]>'), "Special tokens"),
    (Constraint("grammar", "start: <|im_end|>"), "unknown special token"),
    (Constraint("grammar", "start: <|none|>"), "Special tokens"),
    (Constraint("grammar", 'start: %json {"type": 3}'), "type must be"),
    (Constraint("grammar", "start: %json {"), "not valid JSON"),
    (Constraint("nope", "x"), "no constraints of the kind 'nope'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("constraint", "message"), BAD, ids=lambda v: str(v)[:60])
def test_what_can_not_be_held(constraint: Constraint, message: str) -> None:
    with pytest.raises(BadConstraint) as caught:
        check(constraint)
    assert message in caught.value.message
    assert caught.value.tool is None
    assert "%llguidance" not in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(BadConstraint):
        check(constraint, Tools((Tool("f"),)))


@pytest.mark.parametrize(
    ("bounds", "no", "yes"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0", "0.0", "-0", "0.51"], ["0.5", "0.001"]),
        (
            {"exclusiveMinimum": 1, "exclusiveMaximum": 1.5, "minimum": 1.25},
            ["1", "1.0", "1.2", "1.5"],
            ["1.25", "1.4"],
        ),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ["0", "-0", "-0.0"], ["-0.5", "-0.1"]),
        ({"exclusiveMinimum": 0}, ["0"], ["0.0000000000001", "7"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-10}, ["0"], ["0.0000000001"]),
        ({"minimum": 3, "exclusiveMinimum": True, "maximum": 5}, ["6"], ["4"]),
        ({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}, ["0", "0.51"], ["0.5", "0.001"]),
        ({"anyOf": [{"maximum": 0.5}], "exclusiveMinimum": 0}, ["0", "0.51"], ["0.5", "0.001"]),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"minimum": 9.5}}, "exclusiveMaximum": 10},
            ["10", "9.4"],
            ["9.95", "9.5"],
        ),
        ({"allOf": [{"type": "integer"}, {"exclusiveMinimum": 0, "exclusiveMaximum": 3}]}, ["0", "3"], ["1", "2"]),
        ({"allOf": [{"exclusiveMinimum": 10**9}]}, [str(10**9)], [str(10**9 + 1)]),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, [str(2**63), "1e30"], ["0", str(2**62), str(-(2**62))]),
        ({"minimum": -(10**20)}, [], ["-5", "5"]),
        ({"allOf": [{"exclusiveMinimum": 2**53}]}, [str(2**53)], [str(2**53 + 2)]),
        ({"allOf": [{"exclusiveMaximum": 2**63}]}, [str(2**63)], ["5", str(2**62)]),
        ({"maximum": 2**53 + 1}, [str(2**53 + 2)], [str(2**53)]),
        ({"minimum": -(2**53) - 1}, [str(-(2**53) - 2)], [str(-(2**53))]),
    ],
    ids=str,
)
async def test_bounds_let_nothing_through_that_they_forbid(
    bounds: dict[str, Any], no: list[str], yes: list[str]
) -> None:
    """The library reads numbers as doubles, and forgets that a bound is open where the other one is less than one away."""

    async def held(text: str) -> bool:
        g = await guide(schema({"type": "number", **bounds}))
        try:
            say(MIXED, g, text.encode())
        except ValueError:
            return False
        return g.may_end

    for text in no:
        assert not await held(text), text
    for text in yes:
        assert await held(text), text


async def test_tools_are_offered_whatever_their_numbers() -> None:
    """What can't be held of them is let be, as other keywords are."""
    parameters = {"properties": {"id": {"const": 123456789012345678}, "n": {"type": "integer", "minimum": -(10**30)}}}
    check(tools=Tools((Tool("f", "", parameters),)))


def chain(length: int, link: str) -> dict[str, Any]:
    """A schema of definitions that refer to the next."""
    text = json.dumps({str(n): json.loads(link.replace("NEXT", f"#/$defs/{n + 1}")) for n in range(length)})
    return {"$ref": "#/$defs/0", "$defs": {**json.loads(text), str(length): {"type": "null"}}}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"items": value}
    return value


@pytest.mark.parametrize(
    "constraint",
    [
        schema(chain(3000, '{"properties": {"x": {"$ref": "NEXT"}}, "required": ["x"]}')),
        schema(chain(5000, '{"$ref": "NEXT"}')),
        schema(chain(500, '{"anyOf": [{"anyOf": [{"anyOf": [{"anyOf": [{"$ref": "NEXT"}]}]}]}]}')),
        schema(nested(900)),
        Constraint("json_schema", '{"items":' * 100_000),
        Constraint("json_schema", '{"description": "' + "x" * bounds.MOST_SCHEMA + '"}'),
        Constraint("grammar", "start: r0\n" + "".join(f'r{n}: r{n + 1} | "a"\n' for n in range(50_000))),
        Constraint("grammar", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
        Constraint("grammar", "start: %json " + json.dumps(chain(900, '{"items": {"$ref": "NEXT"}}'))),
        Constraint("regex", "(" * 5_000 + ")" * 5_000),
        Constraint("regex", "a" * (bounds.MOST_REGEX + 1)),
    ],
    ids=lambda c: f"{c.kind}: {c.source[:40]!r}",
)
def test_what_could_overflow_a_stack_is_refused(constraint: Constraint) -> None:
    """The compiler recurses in native code: too deep, and the process is gone."""
    began = time.monotonic()
    with pytest.raises(BadConstraint):
        check(constraint)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "link",
    [
        '{"$ref": "NEXT"}',
        '{"properties": {"x": {"$ref": "NEXT"}}, "required": ["x"]}',
        '{"patternProperties": {"^a": {"$ref": "NEXT"}}}',
        '{"items": {"$ref": "NEXT"}}',
        '{"anyOf": [{"$ref": "NEXT"}, {"type": "null"}]}',
        '{"oneOf": [{"type": "array", "items": {"$ref": "NEXT"}}, {"type": "null"}]}',
        '{"prefixItems": [{"$ref": "NEXT"}]}',
    ],
)
def test_the_deepest_that_is_let_through_does_no_harm(link: str) -> None:
    """Ended by a signal if it did."""
    length = 300
    while True:
        value = chain(length + 100, link)
        try:
            bounds.bounded_schema(value)
        except BadConstraint:
            break
        length += 100
    check(schema(chain(length, link)))


def test_the_largest_grammar_that_is_let_through_does_no_harm() -> None:
    count = bounds.MOST_COLONS - 2
    check(Constraint("grammar", "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(count)) + f'r{count}: "b"'))
    check(
        Constraint("grammar", "start: R0\n" + "".join(f'R{n}: R{n + 1} "a"\n' for n in range(count)) + f'R{count}: "b"')
    )


async def test_a_regular_expression_of_many_parts_does_no_harm() -> None:
    for source in ("(a?){1000}" * 1000, "((((a{1,50}){1,50}){1,50}){1,50}){1,50}", "(.*a.*){500}", "(a|b?)" * 1500):
        asked = Constraint("regex", source)
        try:
            check(asked)
            g = await guide(asked)
            for _ in range(20):
                say(MIXED, g, b"a")
        except (BadConstraint, RequestRejected) as error:
            assert "complex" in str(error) or "lexer" in str(error)


def test_a_bad_tool_is_named() -> None:
    tools = Tools((Tool("f"), Tool("g", "", {"properties": {"x": {"type": "nope"}}})))
    with pytest.raises(BadConstraint) as caught:
        check(None, tools)
    assert (caught.value.tool, caught.value.message) == (1, "Invalid type: nope")
    with pytest.raises(BadConstraint, match="no tool named 'h'"):
        check(None, Tools((Tool("f"),), "named", "h"))


def test_the_parameters_of_tools_are_held_as_far_as_they_can_be() -> None:
    loose = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True, "not": {}}}, "$comment": "x"}
    check(None, Tools((Tool("f", "", loose), Tool("g", "", {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}))))
