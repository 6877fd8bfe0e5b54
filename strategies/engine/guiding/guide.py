"""The rule on one answer, piece by piece."""

from __future__ import annotations

import anyio.to_thread
import numpy as np
from llguidance import LLMatcher

from backends.errors import RequestRejected
from strategies.engine.guiding.bounds import BadConstraint
from strategies.engine.guiding.grammars import compile_rule, nothing_goes_on
from strategies.engine.guiding.tokenizers import tokenizer_of
from strategies.vocabulary import Inventory


class GrammarGuide:
    """A `strategies.fusion.Guide`. Holds one answer's place in a grammar; used from one task.

    model: whom errors name. Raises RequestRejected from either method where the grammar turns out to be too costly, or where the
    models have no piece that goes on.
    """

    __slots__ = ("_mask", "_matcher", "_model", "_size")

    def __init__(self, matcher: LLMatcher, size: int, model: str) -> None:
        """size: how many pieces there are."""
        self._matcher = matcher
        self._size = size
        self._model = model
        self._mask: bytes | None = None

    def allowed(self) -> bytes:
        """One byte per piece: 1 where it may come next, else 0."""
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()  # an error would look like an end
            self._mask = np.unpackbits(bits, count=self._size, bitorder="little").tobytes()
        return self._mask

    def said(self, piece: int) -> None:
        """The answer goes on with this piece, or ends. Raises ValueError if it was not allowed."""
        if not self.allowed()[piece]:
            raise ValueError(f"piece {piece} does not fit what the answer must match")
        self._mask = None
        self._matcher.consume_token(piece)
        self._check()

    @property
    def may_end(self) -> bool:
        """Whether what was said so far is a whole answer."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if nothing_goes_on(self._matcher):
            raise self._rejected("the models have no token that goes on so")
        if self._matcher.is_error():
            raise self._rejected("it is too complex")

    def _rejected(self, reason: str) -> RequestRejected:
        return RequestRejected(self._model, f"The answer can't be held to the form that was asked for: {reason}.")


async def guide_for(rule: str, inventory: Inventory, model: str) -> GrammarGuide:
    """A guide at the beginning of an answer. rule: from `rule_for`. model: whom errors name. Raises RequestRejected."""

    def make() -> LLMatcher:
        return compile_rule(rule, tokenizer_of(inventory))

    try:
        matcher = await anyio.to_thread.run_sync(make)
    except BadConstraint as error:  # it passed `check`, but is too much for this many pieces
        raise RequestRejected(model, f"The answer can't be held to the form that was asked for: {error}") from error
    return GrammarGuide(matcher, len(inventory.pieces), model)
