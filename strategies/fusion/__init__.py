"""Fusion: many next-token distributions become one text, over different vocabularies too.

Model (linear opinion pool over common pieces, the default). Every member gives a distribution over its own token sequences,
hence over sequences of common pieces (strategies.vocabulary). The probability that member m says piece v next is the mass of
all its *readings* of what was said so far that go on with v, divided by the mass of all its readings. The pool is the weighted
mean over the members; greedy takes its largest piece, ties by byte order, END competing like any piece.

A reading is a node (a token sequence that was evaluated) and the tokens behind it that are not contradicted yet. A piece that
ends inside a token needs no forward pass: the token stays pending. One that completes a token makes a new node, due for one.

Invariants. The order of the members never shows. The bytes that every member's kept readings begin with are the bytes said. The
masses of a member's kept readings add up to one; what was dropped is metered as lost. A step is *certified* only if no completion
of the unlisted probabilities could change its winner.

Cost per piece and member: O(k) dictionary operations on the k listed tokens, some tens of microseconds for k = 20; several times
that for a piece whose winner has to be looked up. `modelnet bench` measures it.

Everything here is pure and synchronous (`base.Fuser` says in what order); the engine does the waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from backends.types import Vocabulary
from strategies.fusion.base import Commit, Fuser, Lookup, Node, NothingToSay, route
from strategies.fusion.chooser import Chooser, Greedy, Sampler, chooser_for
from strategies.fusion.linear import LinearPool
from strategies.fusion.meters import Meters
from strategies.fusion.union_topk import UnionTopK

FuserFactory = Callable[[Sequence[Vocabulary], Sequence[float], Chooser], Fuser]

FUSERS: Mapping[str, FuserFactory] = {"linear": LinearPool, "union-top-k": UnionTopK}
"""Fusers by the name that a configuration gives them."""

__all__ = [
    "FUSERS",
    "Chooser",
    "Commit",
    "Fuser",
    "FuserFactory",
    "Greedy",
    "LinearPool",
    "Lookup",
    "Meters",
    "Node",
    "NothingToSay",
    "Sampler",
    "UnionTopK",
    "chooser_for",
    "route",
]
