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

Cost per piece and member: O(k) operations on the k listed tokens, some ten microseconds for k = 20 on the compiled core (`native`); several
times that for a piece whose winner has to be looked up. `modelnet bench` measures it.

`pool` holds what all pools have in common and asks a subclass for its formula and its bounds (`linear`, `geometric`, `entropy`, `gated`);
`field` is what else has a say about the next piece (a guide, penalties, biases), `telling` what is told about it; `registry` finds
fusers by name, those of others too, and `testing` is the contract that all of them keep.

Everything here is pure and synchronous (`base.Fuser` says in what order); the engine does the waiting.
"""

from __future__ import annotations

from strategies.fusion.base import Commit, Detail, Fuser, Guide, Lookup, Node, NothingToSay, Tell, root, route
from strategies.fusion.chooser import Chooser, Greedy, Sampler, chooser_for
from strategies.fusion.linear import LinearPool
from strategies.fusion.meters import Certificate, Meters
from strategies.fusion.registry import FUSERS, FuserError, FuserFactory, fuser_names, fuser_of
from strategies.fusion.shaping import Shaping
from strategies.fusion.union_topk import UnionTopK

__all__ = [
    "FUSERS",
    "Certificate",
    "Chooser",
    "Commit",
    "Detail",
    "Fuser",
    "FuserError",
    "FuserFactory",
    "Greedy",
    "Guide",
    "LinearPool",
    "Lookup",
    "Meters",
    "Node",
    "NothingToSay",
    "Sampler",
    "Shaping",
    "Tell",
    "UnionTopK",
    "chooser_for",
    "fuser_names",
    "fuser_of",
    "root",
    "route",
]
