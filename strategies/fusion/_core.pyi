# Compiled from core/. Nodes and views have the attributes of those of strategies.fusion.base and strategies.fusion.readings, and are typed
# as such, though they are classes of their own. What is wrong raises TypeError, ValueError or IndexError.

from collections.abc import Collection, Sequence
from typing import Self

from backends.types import Ids, LogProbs, TopK
from strategies.fusion import base, readings
from strategies.vocabulary import Speller

VERSION: int

class Node(base.Node): ...
class View(readings.View): ...

# The hot part of strategies.fusion.readings.Readings.
class Readings:
    speller: Speller
    position: base.Node
    due: list[base.Node]
    lost: float
    repaired: bool
    narrowed: bool
    _nodes: list[base.Node]
    _pieces: Sequence[bytes]

    def __new__(cls, speller: Speller, pieces: Sequence[bytes], *, beam: int, share: float) -> Self: ...
    def feed(self, node: base.Node, top: TopK, /) -> None: ...
    def view(self) -> readings.View: ...
    def bound(self, piece: int, /) -> float: ...
    def bounds(self, pieces: Sequence[int], /) -> list[float]: ...
    def supply(self, logprobs: LogProbs, /) -> None: ...
    def weigh(self, logprobs: LogProbs, /) -> tuple[dict[int, float], bool]: ...
    def advance(self, piece: int, /) -> None: ...
    def _missing(self, pieces: Sequence[int], most: int, /) -> list[Ids]: ...  # per piece to be asked for, its tokens
    def _forget_all(self) -> None: ...

# Of each, what is to be evaluated now: `Pool.due`.
def due(members: Sequence[readings.Readings], /) -> list[tuple[base.Node, ...]]: ...

# `strategies.fusion.linear._pooled`.
def pooled(views: Sequence[readings.View], weights: Sequence[float], estimate: bool, /) -> dict[int, float]: ...

# What `LinearPool._decide` finds where the likeliest piece is chosen and nothing shapes it (ties go to the smaller id): the winner, its
# estimated score, the gap, rivals, and the places of those to look them up at, or the winner if there are none (share: as for `losing`;
# negative: nobody is to be asked). None: nothing is listed.
def decide(
    members: Sequence[readings.Readings],
    weights: Sequence[float],
    same: bool,
    ends: Collection[int],
    share: float,
    /,
) -> tuple[int, float, float, list[int], list[int]] | None: ...

# Places of those that may have more than `share` of what they list of the winner unlisted: see `Pool._losing_much`.
def losing(
    members: Sequence[readings.Readings], views: Sequence[readings.View], winner: int, share: float, /
) -> list[int]: ...

# Everybody advances. How many had to tokenize anew, and what was lost so far (weighted, and the most of one), that of this piece added.
def say(
    members: Sequence[readings.Readings], weights: Sequence[float], piece: int, lost: float, worst: float, /
) -> tuple[int, float, float]: ...

# Probabilities of natural logarithms, as everything here has them: within 4e-16 of the true ones, the same bits on every machine.
def exponentials(logprobs: LogProbs, /) -> list[float]: ...
