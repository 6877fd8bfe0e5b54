"""Which scored distributions may be used though their last digits are not those of single steps.

A place may be passed on a scored distribution if every member of the group is sure of the same next pieces there: each gives the token of
its draft so much that, however the noise fell, it is above one half (`at_least`); all drafts spell the same pieces; and no other token
that spells the beginning of the same, or more than it, has a share that could matter later. Then every pool whose piece is that of the
members where all agree (`Pool.unanimous`) says that piece in either case, and keeps the same readings. Everything else is stepped singly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.types import TopK
from strategies.vocabulary import Speller

SURE = 0.55
"""What every member must give the piece at least, noise taken off."""
LIKELY = 0.01
"""A session's noise (`DraftingSession.draft_noise`) is that of tokens from this probability on. Those of less may be off by twice as many
nats, it is reckoned."""
ALIKE = 0.004
"""What part of that it may give, noise put on, other tokens that the same text begins with: below the share at which a reading is worth a
forward pass."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One member's draft. rows: at least one for each token of it, the i-th being what it is judged by."""

    speller: Speller
    draft: Sequence[int]
    rows: Sequence[TopK]
    noise: float


def usable(members: Sequence[Scored]) -> list[int]:
    """How many rows of each member's draft may be used, from the first on."""
    spelled = [[piece for token in member.draft for piece in member.speller[token]] for member in members]
    agreed = _alike(spelled)
    ends = []
    for member, pieces in zip(members, spelled, strict=True):
        ends.append(_ends(member))
        agreed = min(agreed, _sure(member, pieces, ends[-1], agreed))
    return [sum(end <= agreed for end in each) for each in ends]


def _ends(member: Scored) -> list[int]:
    """Pieces of the draft up to the end of each of its tokens."""
    ends, at = [], 0
    for token in member.draft:
        at += len(member.speller[token])
        ends.append(at)
    return ends


def _alike(spelled: Sequence[Sequence[int]]) -> int:
    """How long the beginning is that all have in common."""
    shortest = min(map(len, spelled))
    first = spelled[0]
    return next((at for at in range(shortest) if any(each[at] != first[at] for each in spelled)), shortest)


def _sure(member: Scored, pieces: Sequence[int], ends: Sequence[int], most: int) -> int:
    """Pieces of the draft that the member is sure of, about `most` at most."""
    begin = 0
    for token, end, row in zip(member.draft, ends, member.rows, strict=False):
        if begin >= most:
            break
        probs = np.exp(row.logprobs)
        found = np.flatnonzero(row.ids == token)
        least = at_least(probs, int(found[0]), member.noise) if len(found) else 0.0
        if least < SURE:
            return begin
        loudest = _at_most(probs, member.noise).tolist()
        if _others(member.speller, row.ids.tolist(), loudest, token, pieces[begin:]) > ALIKE * least:
            return begin
        begin = end
    return begin


def at_least(probs: NDArray[np.float64], at: int, noise: float) -> float:
    """What a single step gives this token at least: its log-probability is off by at most the noise; and so are those of all others, who
    therefore have at most so much.

    probs: float64 [k], of those that are listed.
    """
    unlisted = max(0.0, 1.0 - float(probs.sum()))
    others = float(np.delete(_at_most(probs, noise), at).sum()) + unlisted * math.exp(2 * noise)
    return max(float(probs[at]) * math.exp(-noise), 1.0 - others)


def _at_most(probs: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """What a single step gives each of these tokens at most."""
    return probs * np.where(probs >= LIKELY, math.exp(noise), math.exp(2 * noise))


def _others(speller: Speller, ids: Sequence[int], probs: Sequence[float], token: int, coming: Sequence[int]) -> float:
    """Mass of listed tokens, other than `token`, that the text may begin with too."""
    total = 0.0
    for id, p in zip(ids, probs, strict=True):
        if id != token:
            spelling = speller[id]
            length = min(len(spelling), len(coming))
            if length and list(spelling[:length]) == list(coming[:length]):
                total += p
    return total
