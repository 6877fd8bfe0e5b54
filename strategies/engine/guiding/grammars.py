"""From what is asked of an answer to one grammar in Lark's form, as llguidance reads it.

JSON is written on one line, with at most one space behind a comma or a colon: room for the two usual ways of writing it, none for endless
white space. A schema of the client's is held in full or refused. The parameters of tools are held as far as they can be, since lists of
tools are written for servers that do not look at every keyword.

Tool calls have the form that Hermes and Qwen models were trained on:

    <tool_call>
    {"name": "…", "arguments": {…}}
    </tool_call>

An answer is text, then any number of such blocks, a line break between two of them; nothing stands behind the last one. Which of these
parts there may be depends on what was asked (`rule_for`). In free text the mark <tool_call> always begins a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from strategies.engine.guiding.bounds import (
    MOST_SCHEMA,
    BadConstraint,
    bounded_grammar,
    bounded_regex,
    bounded_schema,
    parse_schema,
    with_deep_stack,
)
from strategies.engine.guiding.figures import held_exactly, with_bounds_inside
from strategies.engine.guiding.tokenizers import byte_tokenizer
from strategies.engine.options import Constraint, Tool, Tools

CALL_BEGIN = "<tool_call>"
CALL_END = "</tool_call>"

MOST_CALLS = 32
"""Calls in one answer: a model that repeats itself must come to an end."""

LIMITS = LLParserLimits(verbose_errors=False)

_HEAD = '%llguidance {"no_forcing": true}\n'  # any way to cut the text into pieces is fine, not only the longest pieces
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_LENIENT = {**_JSON, "lenient": True, "coerce_one_of": True}
_FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_DATA = frozenset({"const", "enum", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_MERGING = ("allOf", "anyOf", "oneOf", "$ref")
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "additionalProperties"})


def check(constraint: Constraint | None = None, tools: Tools | None = None) -> None:
    """Whether answers can be held to this. Raises BadConstraint.

    Pure, and remembers what it has seen. A new schema takes some milliseconds; a bad one that tries hard, some hundred.
    """
    if constraint is not None:
        _must_compile(_whole(_answer(constraint)))
    for index, tool in enumerate(tools.tools if tools is not None else ()):
        try:
            _must_compile(_whole(f"start: {_arguments(tool)}"))
        except BadConstraint as error:
            raise BadConstraint(error.message, index) from None
    if tools is not None:
        _must_compile(_tool_rule(tools, constraint))


def rule_for(constraint: Constraint | None, tools: Tools | None) -> str | None:
    """The grammar of an answer; None: it may be anything. Raises BadConstraint.

    Tools that must not be called (choice "none") still leave a rule: the mark of a call must not be in the text.
    """
    if tools is not None:
        return _tool_rule(tools, constraint)
    return None if constraint is None else _whole(_answer(constraint))


def compile_rule(rule: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at its start. Blocks for milliseconds: call it in a thread. Raises BadConstraint."""
    matcher: LLMatcher = with_deep_stack(lambda: LLMatcher(tokenizer, rule, log_level=0, limits=LIMITS))
    if nothing_goes_on(matcher):
        raise BadConstraint("Nothing matches it.")
    if matcher.is_error():
        raise BadConstraint(_readable(matcher.get_error()))
    return matcher


def nothing_goes_on(matcher: LLMatcher) -> bool:
    """Whether a matcher has failed since no token leads on to anything that it matches. Its message is all that says so."""
    failed: bool = matcher.is_error() and matcher.get_error().startswith("NoExtensionBias")
    return failed


def _tool_rule(tools: Tools, constraint: Constraint | None) -> str:
    answer = None if constraint is None else _answer(constraint)
    if tools.choice == "none" or not tools.tools:
        return _whole(answer or f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*){CALL_BEGIN}(?s:.*)/")
    offered = tools.tools
    if tools.choice == "named":
        offered = tuple(tool for tool in offered if tool.name == tools.named)
        if not offered:
            raise BadConstraint(f"There is no tool named {tools.named!r}.")
    more = "" if tools.choice == "named" or not tools.parallel else f" (next call){{0,{MOST_CALLS - 1}}}"
    parts = [
        f"next: {_literal(chr(10) + CALL_BEGIN)}",
        f"first: {_literal(CALL_BEGIN)}",
        f'call: "\\n{{\\"name\\": " ({" | ".join(f"tool_{n}" for n in range(len(offered)))}) {_literal("}" + chr(10) + CALL_END)}',
        *(
            f'tool_{n}: {_literal(json.dumps(tool.name))} ", \\"arguments\\": " {_arguments(tool)}'
            for n, tool in enumerate(offered)
        ),
    ]
    if tools.choice != "auto":
        return _whole("\n".join([f"start: first call{more}", *parts]))
    if answer is not None:
        return _whole("\n".join([f"start: @answer | first call{more}", *parts]), answer)
    # A lazy lexeme ends where it first can, so text that holds the mark is the beginning of a call, and nothing else.
    start = f"start: TEXT | opened call{more}"
    opened = f"opened[lazy]: /(?s:.*)/ {_literal(CALL_BEGIN)}"
    return _whole("\n".join([start, "TEXT: /(?s:.*)/", opened, *parts]))


def _whole(grammar: str, answer: str | None = None) -> str:
    """The library's own form: a main grammar, and the one that it calls @answer."""
    grammars = [{"name": "main", "lark_grammar": _HEAD + grammar}]
    if answer is not None:
        grammars.append({"name": "answer", "lark_grammar": answer})
    return json.dumps({"grammars": grammars})


def _answer(constraint: Constraint) -> str:
    """The grammar of a constraint, beginning at `start`."""
    match constraint.kind:
        case "json_object":
            return f"start: {_json({'type': 'object'}, _JSON)}"
        case "json_schema":
            return f"start: {_json(_as_held(parse_schema(constraint.source)), _JSON)}"
        case "regex":
            bounded_regex(constraint.source)
            return _regex(constraint.source)
        case "grammar":
            bounded_grammar(constraint.source)
            return constraint.source
    raise BadConstraint(f"There are no constraints of the kind {constraint.kind!r}.")


def _arguments(tool: Tool) -> str:
    """What the arguments of a call must match: an object, with the tool's own properties only unless it says otherwise."""
    schema = bounded_schema({**tool.parameters, "type": "object"})
    assert isinstance(schema, dict)
    if not _COMBINING & schema.keys():
        schema["additionalProperties"] = False
    return _json(_as_held(schema, lenient=True), _LENIENT)


def _json(schema: Any, options: Mapping[str, Any]) -> str:
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": options}
    text = json.dumps(schema)
    if len(text) > MOST_SCHEMA:
        raise BadConstraint(f"The schema is too long: at most {MOST_SCHEMA} characters.")
    return f"%json {text}"


def _as_held(schema: Any, *, lenient: bool = False) -> Any:
    """The schema as the library holds it: without formats that are notes for people (validators may ignore those, and the library refuses
    them), and with numbers that it reads right. Raises BadConstraint for others, unless it is lenient."""
    written = json.dumps(schema)
    alone = not any(f'"{key}"' in written for key in _MERGING)

    def held(part: Any) -> Any:
        if isinstance(part, list):
            return [held(item) for item in part]
        if not isinstance(part, dict):
            return part
        if not lenient:
            held_exactly([part[key] for key in ("const", "enum") if key in part])
        inner: dict[str, Any] = {}
        for key, value in part.items():
            if key in _NAMED and isinstance(value, dict):
                inner[key] = {name: held(named) for name, named in value.items()}
            elif key != "format" or not isinstance(value, str) or value in _FORMATS:
                inner[key] = value if key in _DATA else held(value)
        try:
            return with_bounds_inside(inner, alone=alone)
        except BadConstraint:
            if lenient:
                return inner
            raise

    return held(schema)


def _regex(source: str) -> str:
    try:
        written = json.loads(LLMatcher.grammar_from_regex(source))
    except UnicodeEncodeError:
        raise BadConstraint("The regular expression is not valid text.") from None
    grammar: str = written["grammars"][0]["lark_grammar"]
    return grammar


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _must_compile(rule: str) -> None:
    if problem := _problem(rule):
        raise BadConstraint(problem)


@lru_cache(maxsize=64)
def _problem(rule: str) -> str:
    """What is wrong with a grammar; "" if nothing is."""
    try:
        wrong, remarks = _validated(rule)
        if wrong:
            return _readable(remarks[0])
        matcher = compile_rule(rule, byte_tokenizer())
    except UnicodeEncodeError:
        return "It is not valid text."
    except BadConstraint as error:
        return error.message
    if set(remarks) - set(matcher.get_grammar_warnings()):
        # It names tokens. Pieces are a matter of the models of a group, so that would mean nothing.
        return "Special tokens and token ids can't be used."
    matcher.compute_bitmask()
    if nothing_goes_on(matcher):
        return "Nothing matches it."
    return _readable(matcher.get_error()) if matcher.is_error() else ""


def _validated(rule: str) -> tuple[bool, list[str]]:
    """Whether a grammar is wrong, and remarks on it: without a tokenizer, also on every place that needs one."""
    return with_deep_stack(lambda: LLMatcher.validate_grammar_with_warnings(rule, None, limits=LIMITS))


def _readable(message: str) -> str:
    """The library's message without its listing of a source that the client did not write."""
    lines = message.split("\n   1 | ", maxsplit=1)[0].replace("<non-verbose/>", "").strip().splitlines()
    reason = next((line for line in reversed(lines) if line.startswith("error: ")), "").removeprefix("error: ")
    first = re.sub(
        r"^(?:at )?\d+\(\d+\): |failed to compile JSON schema: ", "", lines[0] if lines else "unknown reason"
    )
    return f"{first[:300]} {reason}".strip()
