"""Reads a model name as a wiring.

    topology := [ kind ":" ] serial
    kind     := "si" | "pi" | "s2p" | "p2s"
    serial   := parallel { ">" parallel }
    parallel := member { "|" member }
    member   := ( NAME | "(" serial ")" ) [ "*" WEIGHT ]
    NAME     := one or more ASCII letters, digits and . _ - /
    WEIGHT   := digits [ "." digits ] | "." digits       at most 9 digits on either side, more than zero, no exponent, no sign

Space, tab and line breaks may stand around every symbol. A word is a kind only where a ":" follows it, so `pi` alone and
`si-model` are names; nothing else may stand before a ":". Recursive descent; its depth and its time are bounded by the limits.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import get_args

from strategies.topology.ast import NAME, WEIGHT_DIGITS, Kind, Member, Model, Topology, parallel, serial
from strategies.topology.errors import TopologyError
from strategies.topology.limits import DEFAULT_LIMITS, Limits
from strategies.topology.shape import shape

KINDS: tuple[Kind, ...] = get_args(Kind)

_SPACE = " \t\r\n"
_WEIGHT = re.compile(rf"[0-9]{{1,{WEIGHT_DIGITS}}}(\.[0-9]{{1,{WEIGHT_DIGITS}}})?|\.[0-9]{{1,{WEIGHT_DIGITS}}}")
_WEIGHT_LIKE = re.compile(r"[A-Za-z0-9._+-]+")
_SHOWN = 40
"""Characters of a wrong word that a message repeats at most."""

_MEANING = {
    "single": "one model",
    "si": "si (single models, one after another)",
    "pi": "pi (one group)",
    "s2p": "s2p (single models, then one group)",
    "p2s": "p2s (one group, then single models)",
    "mixed": "a mixed wiring that no kind describes",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text that is a wiring.

    text: as given. kind: the claim in front, if any. names: every NAME with its 0-based column, in the order of the text, which
    is the order of `ast.models(topology)`: so later errors can point.
    """

    text: str
    topology: Topology
    kind: Kind | None
    names: tuple[tuple[str, int], ...]


def parse(text: str, limits: Limits = DEFAULT_LIMITS, *, claims: bool = True) -> Parsed:
    """Read a wiring. Raises TopologyError, and nothing else, for any text that is none or exceeds the limits.

    claims: check the kind against the shape. Routing puts it off (`check_kind`) until aliases are expanded.
    """
    if len(text) > limits.length:
        raise TopologyError(text, limits.length, f"found {len(text)} characters, expected at most {limits.length}")
    parsed = _Reader(text, limits).read()
    if claims:
        check_kind(parsed, parsed.topology)
    return parsed


def check_kind(parsed: Parsed, topology: Topology) -> None:
    """Check the kind claimed in a text against a wiring (its own, or that with the aliases expanded). Raises TopologyError."""
    if parsed.kind is None:
        return
    actual = shape(topology)
    if actual == parsed.kind:
        return
    advice = f"write '{actual}:' or drop the prefix" if actual in KINDS else "drop the prefix"
    column = len(parsed.text) - len(parsed.text.lstrip(_SPACE))
    raise TopologyError(parsed.text, column, f"this is {_MEANING[actual]}, not {_MEANING[parsed.kind]}; {advice}")


class _Reader:
    """The text, how far it is read, and what was counted on the way."""

    __slots__ = ("at", "depth", "limits", "names", "stages", "text")

    def __init__(self, text: str, limits: Limits) -> None:
        self.text = text
        self.limits = limits
        self.at = 0
        self.depth = 0
        self.stages = 1
        self.names: list[tuple[str, int]] = []

    def read(self) -> Parsed:
        kind = self.kind()
        topology = self.serial()
        if self.at < len(self.text):
            raise self.unexpected("'>', '|' or the end")
        return Parsed(self.text, topology, kind, tuple(self.names))

    def kind(self) -> Kind | None:
        self.skip()
        word = NAME.match(self.text, self.at)
        if word is None:
            return None
        self.at = word.end()
        self.skip()
        if self.peek() != ":":
            self.at = word.start()
            return None
        for kind in KINDS:
            if word[0] == kind:
                self.at += 1
                return kind
        near = difflib.get_close_matches(word[0][:_SHOWN].lower(), KINDS, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}:'?" if near else "; names hold no ':'"
        raise self.error(
            word.start(), f"found '{_cut(word[0])}:', expected a kind ({', '.join(KINDS)}) before ':'{hint}"
        )

    def serial(self) -> Topology:
        parts = [self.parallel()]
        while self.peek() == ">":
            self.stages += 1
            if self.stages > self.limits.stages:
                raise self.error(self.at, f"found a stage more than the {self.limits.stages} allowed")
            self.at += 1
            parts.append(self.parallel())
        return serial(parts)

    def parallel(self) -> Topology:
        members = [self.member()]
        while self.peek() == "|":
            self.at += 1
            members.append(self.member())
        return parallel(members)

    def member(self) -> Member:
        """One member and the white space behind it."""
        self.skip()
        topology = self.group() if self.peek() == "(" else self.name()
        self.skip()
        if self.peek() != "*":
            return Member(topology)
        self.at += 1
        self.skip()
        weight = self.weight()
        self.skip()
        return Member(topology, weight)

    def group(self) -> Topology:
        opened = self.at
        self.depth += 1
        if self.depth > self.limits.depth:
            raise self.error(opened, f"found parentheses nested deeper than the {self.limits.depth} levels allowed")
        self.at += 1
        topology = self.serial()
        if self.peek() != ")":
            raise self.unexpected(f"'>', '|' or the ')' for the '(' in column {opened + 1}")
        self.at += 1
        self.depth -= 1
        return topology

    def name(self) -> Model:
        word = NAME.match(self.text, self.at)
        if word is None:
            raise self.unexpected("a model or '('")
        if len(self.names) == self.limits.members:
            raise self.error(self.at, f"found a model more than the {self.limits.members} allowed")
        self.names.append((word[0], self.at))
        self.at = word.end()
        return Model(word[0])

    def weight(self) -> Decimal:
        word = _WEIGHT_LIKE.match(self.text, self.at)
        expected = "a positive weight such as 2 or 0.5"
        if word is None:
            raise self.unexpected(expected)
        if not _WEIGHT.fullmatch(word[0]) or not (weight := Decimal(word[0])):
            if re.fullmatch(r"[0-9]*\.?[0-9]*", word[0]) and len(word[0]) > WEIGHT_DIGITS:
                expected += f", with at most {WEIGHT_DIGITS} digits on either side of the point"
            raise self.error(self.at, f"found '{_cut(word[0])}', expected {expected}")
        self.at = word.end()
        return weight

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    def error(self, column: int, message: str) -> TopologyError:
        return TopologyError(self.text, column, message)

    def unexpected(self, expected: str) -> TopologyError:
        """The error for what stands here, with a hint where we know what was meant."""
        found = self.peek()
        if not found:
            return self.error(self.at, f"found the end, expected {expected}")
        word = NAME.match(self.text, self.at)
        if word is not None:
            return self.error(self.at, f"found '{_cut(word[0])}', expected {expected}")
        return self.error(self.at, f"found {_quoted(found)}, expected {expected}{_hint(found)}")


def _hint(found: str) -> str:
    """What is meant by a character that has no place in a wiring."""
    if found == ":":
        return f"; only a kind at the very start ({', '.join(KINDS)}) is followed by ':'"
    if found == ",":
        return "; stages are joined by '>', members of a group by '|'"
    plain = unicodedata.normalize("NFKC", found)
    if plain != found and plain in (">", "|", "(", ")", "*", ":"):
        return f"; write the ASCII '{plain}'"
    if found.isalnum():
        return "; names are made of ASCII letters, digits and . _ - /"
    return ""


def _quoted(character: str) -> str:
    """The character in quotes if it can be shown, else its code point."""
    return f"'{character}'" if character.isprintable() else f"U+{ord(character):04X}"


def _cut(word: str) -> str:
    return word if len(word) <= _SHOWN else word[: _SHOWN - 1] + "…"
