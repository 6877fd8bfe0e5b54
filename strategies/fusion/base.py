"""The protocol of a fuser: synchronous, without input or output of its own. The engine makes the calls it asks for.

Order of operations, per piece:
    1. `due()`: for every member the nodes whose next-token distribution is wanted; the engine takes each session there and
       calls `feed` for each, in the order given.
    2. `wants()`: exact values that would settle the step. The engine looks them up and calls `supply`; then `wants()` again,
       until it is empty.
    3. `commit()`: the chosen piece, now said by everybody. If it is the end, there is no next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backends.types import LogProbs, TopK
from strategies.fusion.meters import Meters
from strategies.vocabulary import Continuing

Found = tuple[Continuing, NDArray[np.float64]]
"""Tokens that go on alike, and their probabilities, float64 [number of tokens]."""


class NothingToSay(Exception):
    """No member gives any text, or the end, a probability: all that they list are control tokens."""


class Node:
    """A place in one member's token sequence: the prompt, or a parent's place and one more token.

    `weight` and what follows it belong to the readings (strategies.fusion.readings); the engine looks at the first three.
    """

    __slots__ = (
        "at", "depth", "found", "ids", "masses", "nexts", "outside", "parent", "pmin", "probs", "resolved", "rest", "said", "seen",
        "spoken", "token", "weight",
    )  # fmt: skip

    def __init__(self, parent: Node | None, token: int, weight: float = 1.0) -> None:
        self.parent = parent
        self.token = token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.start(weight)
        self.ids: list[int] = []  # listed tokens whose spelling begins with `spoken` …
        self.probs: list[float] = []  # … their probabilities at this node …
        self.nexts: list[int] = []  # … and the piece that each would say next (-1: a control token, no piece)
        self.found: dict[
            int, Found
        ] = {}  # next piece → all tokens that say it, once looked up: they replace the listed ones
        self.rest: Found | None = (
            None  # all tokens that said the last piece of `spoken`, where that was looked up: instead of lists
        )
        self.masses: dict[int, float] = {}  # next piece → sum of its probabilities, without control tokens
        self.seen = 0.0  # sum of the masses
        self.outside = 0.0  # mass of tokens not listed
        self.pmin = 0.0  # no token not listed has more than this

    def start(self, weight: float = 1.0) -> None:
        """Nothing was said since this place, and the member's mass here is `weight`."""
        self.weight = weight
        self.at = 0  # pieces said since this place
        self.said = b""  # their bytes
        self.spoken: tuple[int, ...] = ()  # their ids
        self.resolved: set[int] = set()  # next pieces whose every token is listed

    def forget(self) -> None:
        """Drop the lists: later places refer to this one for the way back only, and an answer may be long."""
        self.ids, self.probs, self.nexts, self.found, self.rest, self.masses = [], [], [], {}, None, {}


def route(here: Node, there: Node) -> tuple[int, list[int]]:
    """How to get a session from one node to another: ids to drop, then ids to append."""
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


@dataclass(frozen=True, slots=True)
class Lookup:
    """A wish for exact values at the place where `member`'s session stands (the last node it was fed)."""

    member: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """What the group said. `probability` is the pooled one; `end`: the text is over and `text` is empty."""

    text: bytes
    end: bool
    probability: float


class Fuser(Protocol):
    """One group's answer in the making."""

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

    @property
    def meters(self) -> Meters:
        """Counts so far (`passes` is the engine's to add)."""
        ...
