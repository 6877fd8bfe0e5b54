"""The protocol of a fuser: synchronous, without input or output of its own. The engine makes the calls it asks for.

Order of operations, per piece:
    1. `due()`: for every member the nodes whose next-token distribution is wanted; the engine takes each session there and
       calls `feed` for each, in the order given.
    2. `wants()`: exact values that would settle the step. The engine looks them up and calls `supply`; then `wants()` again,
       until it is empty.
    3. Only now can a fuser know that it needs members that it had left alone: if some nodes are `due()`, again from 1.
    4. `commit()`: the chosen piece, now said by everybody. If it is the end, there is no next step.
Between any two calls `drop` may take a member out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.types import LogProbs, SomeIds, TopK
from strategies.fusion.meters import Certificate, Meters
from strategies.vocabulary import Continuing

Found = tuple[Continuing, NDArray[np.float64]]
"""Tokens that go on alike, and their probabilities, float64 [number of tokens]."""

NO_PIECES: AbstractSet[int] = frozenset()
NOTHING_FOUND: Mapping[int, Found] = MappingProxyType({})


class NothingToSay(Exception):
    """No member gives any text, or the end, a probability: all that they list are control tokens."""


class Node:
    """A place in one member's token sequence: the prompt, or a parent's place and one more token.

    `weight` and what follows it belong to the readings (strategies.fusion.readings); the engine looks at the first three. What a
    member lists at a place is set when it is fed, and not before.
    """

    __slots__ = (
        "at", "depth", "found", "ids", "masses", "nexts", "outside", "parent", "pmin", "probs", "resolved", "said", "seen",
        "spoken", "token", "weight",
    )  # fmt: skip

    ids: list[int]
    """Listed tokens whose spelling begins with `spoken` …"""
    probs: list[float]
    """… their probabilities at this node …"""
    nexts: list[int]
    """… and the piece that each would say next (-1: a control token, no piece)."""
    found: Mapping[int, Found]
    """Next piece → all tokens that say it, once looked up: they replace the listed ones."""
    masses: dict[int, float]
    """Next piece → sum of its probabilities, without control tokens."""
    seen: float
    """Sum of the masses."""
    outside: float
    """Mass of tokens not listed."""
    pmin: float
    """No token not listed has more than this."""

    def __init__(self, parent: Node | None, token: int, weight: float = 1.0) -> None:
        self.parent = parent
        self.token = token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.start(weight)

    def start(self, weight: float = 1.0) -> None:
        """Nothing was said since this place, and the member's mass here is `weight`."""
        self.weight = weight
        self.at = 0  # pieces said since this place
        self.said = b""  # their bytes
        self.spoken: tuple[int, ...] = ()  # their ids
        self.resolved: AbstractSet[int] = NO_PIECES  # next pieces whose every token is listed
        self.found = NOTHING_FOUND

    def forget(self) -> None:
        """Drop the lists: later places refer to this one for the way back only, and an answer may be long."""
        self.ids, self.probs, self.nexts, self.masses = [], [], [], {}
        self.found = NOTHING_FOUND


def root(node: Node) -> Node:
    """Where the node's member began: behind its prompt."""
    while node.parent is not None:
        node = node.parent
    return node


def route(here: Node, there: Node) -> tuple[int, list[int]]:
    """How to get a session from one node to another: ids to drop, then ids to append."""
    if there.parent is here:  # nearly always
        return 0, [there.token]
    append: list[int] = []
    drop = 0
    while here is not there:
        if here.depth >= there.depth and here.parent is not None:
            here = here.parent
            drop += 1
        else:
            assert there.parent is not None
            append.append(there.token)
            there = there.parent
    append.reverse()
    return drop, append


@dataclass(slots=True, eq=False)
class Lookup:
    """A wish for exact values at the place where `member`'s session stands (the last node it was fed).

    Not frozen, nor is a commit: there are some of them a piece, and setting up what is frozen takes four times as long.
    """

    member: int
    ids: SomeIds


class Guide(Protocol):
    """What may be said next, piece by piece: an outside rule on the text (a JSON schema, a grammar)."""

    def allowed(self) -> bytes | None:
        """One byte per piece id of the group's inventory: 1 where the piece may come next, else 0 (ends included). None: any may."""
        ...

    def said(self, piece: int) -> None:
        """The group said this piece. Raises ValueError if it was not allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Tell:
    """What a fuser is to tell about every piece, beside the piece. top: how many of the likeliest pieces. members: what each
    member thought of it."""

    top: int = 0
    members: bool = False


@dataclass(frozen=True, slots=True)
class Detail:
    """What was asked for by `Tell`. Log-probabilities are nats of the pooled distribution as it is before penalties, biases, a
    temperature or a guide change it.

    top: the likeliest pieces of text (never the end), likeliest first. members: per member its own probability of the piece; None: it was
    not asked. others: members that would have said something else: (member, bytes, its own probability of them; empty bytes: the end).
    """

    logprob: float
    certificate: Certificate
    top: tuple[tuple[bytes, float], ...] = ()
    members: tuple[float | None, ...] = ()
    others: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(slots=True)
class Commit:
    """What the group said. `probability` is the pooled one; `end`: the text is over and `text` is empty. detail: if asked for."""

    text: bytes
    end: bool
    probability: float
    detail: Detail | None = None


class Fuser(Protocol):
    """One group's answer in the making. certifies: whether its steps can be certain at all, given long enough lists."""

    certifies: ClassVar[bool]

    def due(self) -> Sequence[Sequence[Node]]:
        """Per member, the nodes to be evaluated now; empty where nothing is needed."""
        ...

    def feed(self, member: int, node: Node, top: TopK) -> None:
        """The distribution at `node`."""
        ...

    def wants(self) -> Sequence[Lookup]:
        """Exact values that would help; empty when `commit` can be called. Those that can't be had need not be supplied: a wish
        is uttered once. Raises NothingToSay."""
        ...

    def supply(self, lookup: Lookup, logprobs: LogProbs) -> None:
        """The values asked for: float64 [len(lookup.ids)], nats."""
        ...

    def commit(self) -> Commit:
        """Choose the next piece and advance every member."""
        ...

    def drop(self, member: int) -> None:
        """Go on without this member, the weights of the others scaled to one. Never called for the last one left."""
        ...

    @property
    def meters(self) -> Meters:
        """Counts so far (`passes` is the engine's to add)."""
        ...
