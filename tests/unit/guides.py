"""Inventories and guides for tests of what an answer may be."""

from __future__ import annotations

import json
from typing import Any

from backends.types import Vocabulary
from strategies.engine import Constraint, Tools
from strategies.engine.guiding import GrammarGuide, guide_for, rule_for
from strategies.vocabulary import Inventory

BYTES = tuple(bytes([value]) for value in range(256))
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def vocabulary(*more: bytes, ends: int = 1) -> Vocabulary:
    tokens = (*BYTES, *more, b"", *(b"" for _ in range(ends)))
    return Vocabulary(tokens, frozenset(range(len(tokens) - ends, len(tokens))), repr((more, ends)))


def inventory(*vocabularies: Vocabulary) -> Inventory:
    return Inventory(vocabularies)


MIXED = inventory(
    vocabulary(b'{"', b"ab", b'": "', "中国".encode(), b"<tool", b"_call>"),
    vocabulary(b'{"', b"ab", b'":', "中".encode(), b"<tool_call>\n", b"_call>"),
)


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


async def guide(constraint: Constraint | None, over: Inventory = MIXED, tools: Tools | None = None) -> GrammarGuide:
    rule = rule_for(constraint, tools)
    assert rule is not None
    return await guide_for(rule, over, "m")


def pieces(over: Inventory, guide: GrammarGuide) -> set[bytes]:
    return {over.pieces[id] for id, may in enumerate(guide.allowed()) if may}


def say(over: Inventory, guide: GrammarGuide, text: bytes) -> None:
    """Byte by byte: every byte is a piece."""
    for value in text:
        guide.said(over.pieces.index(bytes([value])))
