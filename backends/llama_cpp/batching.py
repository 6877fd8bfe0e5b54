"""How many sequences may share a pass without changing a digit of one another.

llama.cpp computes one pass with other code from some number of rows on (rearranged 4-bit weights: from four), and that rounds otherwise.
From which number depends on the weights' format, the CPU and the build, so it is tried out: with a token of each of several sequences,
alone and together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.llama_cpp.context import Context
from backends.llama_cpp.logits import Logits

MOST = 8
"""Sequences that are tried together; trying takes as many tokens as half the square of it."""
PROMPT = 3
"""Tokens of each sequence before the one that is compared."""


def exact_width(context: Context, seats: int, size: int) -> int:
    """The most sequences, at most `seats` and `MOST`, of which any number up to it have in one pass the logits that they have alone, to
    the last bit. size: ids in the vocabulary. Leaves the context empty. Raises DecodeFailed."""
    most = min(seats, MOST)
    if most < 2:
        return 1
    tokens = np.random.default_rng(0).integers(0, size, (most, PROMPT + 1)).tolist()
    try:
        for sequence, line in enumerate(tokens):
            context.decode([(sequence, at, token, False) for at, token in enumerate(line[:PROMPT])])
        last = [(sequence, PROMPT, line[PROMPT], True) for sequence, line in enumerate(tokens)]
        alone = [_logits(context, [row])[0] for row in last]
        for width in range(2, most + 1):
            together = _logits(context, last[:width])
            if not all(np.array_equal(one, other) for one, other in zip(alone, together, strict=False)):
                return width - 1
        return most
    finally:
        for sequence in range(most):
            context.forget(sequence)


def _logits(context: Context, rows: Sequence[tuple[int, int, int, bool]]) -> list[Logits]:
    """Of one pass, whose tokens are forgotten again."""
    logits = context.decode(rows)
    for sequence, position, _, _ in rows:
        context.forget(sequence, position)
    return logits
