"""What is let through to the grammar compiler: it recurses, and a stack that overflows takes the process with it.

Measured with llguidance 1.9: 5–8 kB of stack per level of a JSON schema, where following a `$ref` is a level too; 3 kB per rule or
terminal that refers to the next. So compiling has a thread with a stack of its own, and what could fill half of it is refused.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

STACK = 64 << 20
"""Bytes of stack for compiling; only what is touched takes memory."""
MOST_NESTING = 100
"""Levels of a schema as it is written; the library reads 127."""
MOST_LEVELS = 4000
"""Levels of a schema if every reference in it is followed once, one inside the other."""
MOST_SCHEMA = 262_144
MOST_GRAMMAR = 65_536
MOST_REGEX = 16_384
"""Characters."""
MOST_COLONS = 2000
"""Of a grammar: every rule and terminal has one."""

_STACK_LOCK = threading.Lock()


class BadConstraint(ValueError):
    """What an answer is to match can't be used: it is malformed, contradicts itself, or uses what is not supported.

    `tool`: index of the tool whose parameters are at fault; None: the constraint itself. The message is for the client.
    """

    def __init__(self, message: str, tool: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tool = tool


def parse_schema(source: str) -> dict[str, Any] | bool:
    """A JSON schema out of its text. Raises BadConstraint."""
    if len(source) > MOST_SCHEMA:
        raise BadConstraint(f"The schema is too long: at most {MOST_SCHEMA} characters.")
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise BadConstraint(f"The schema is not valid JSON: {error}") from None
    return bounded_schema(schema)


def bounded_schema(schema: Any) -> dict[str, Any] | bool:
    """The schema, if it is one that can be compiled without harm. Raises BadConstraint."""
    if not isinstance(schema, dict | bool):
        raise BadConstraint("The schema must be an object.")
    references: set[str] = set()
    deepest = 0
    for level, key, value in _walk(schema):
        deepest = max(deepest, level)
        if key == "$ref" and isinstance(value, str):
            references.add(value)
    if deepest > MOST_NESTING or deepest * (len(references) + 1) > MOST_LEVELS:
        raise BadConstraint("The schema nests too deeply, or has too many references.")
    return schema


def bounded_grammar(source: str) -> None:
    """Raises BadConstraint for a grammar that can't be compiled without harm."""
    if len(source) > MOST_GRAMMAR:
        raise BadConstraint(f"The grammar is too long: at most {MOST_GRAMMAR} characters.")
    if source.count(":") > MOST_COLONS:
        raise BadConstraint(f"The grammar has too many rules: at most {MOST_COLONS}.")
    decoder = json.JSONDecoder()
    for inline in re.finditer(r"%json\s*", source):
        try:
            schema, _ = decoder.raw_decode(source, inline.end())
        except (ValueError, RecursionError) as error:
            raise BadConstraint(f"A schema in the grammar is not valid JSON: {error}") from None
        bounded_schema(schema)


def bounded_regex(source: str) -> None:
    """Raises BadConstraint for a regular expression that is too long."""
    if len(source) > MOST_REGEX:
        raise BadConstraint(f"The regular expression is too long: at most {MOST_REGEX} characters.")


def with_deep_stack(call: Callable[[], T]) -> T:
    """The call's result, out of a thread with a large stack. Raises what it raises. Blocks; a few milliseconds."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failure.append(error)

    with _STACK_LOCK:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=run, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _walk(root: Any) -> Iterator[tuple[int, str, Any]]:
    """Every value inside, with its level and its key ("" in arrays), without recursion."""
    waiting: list[tuple[int, str, Any]] = [(0, "", root)]
    while waiting:
        item = waiting.pop()
        yield item
        level, _, value = item
        if isinstance(value, dict):
            waiting.extend((level + 1, str(name), inner) for name, inner in value.items())
        elif isinstance(value, list):
            waiting.extend((level + 1, "", inner) for inner in value)
