"""How a member is set on tokens of its own: where no reading fits, behind pieces that it was not asked about, to end what is pending."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strategies.fusion.base import Node
from strategies.vocabulary import Speller


class Restarting(ABC):
    """The part of a member's readings that is rare, and so the same for both kinds of them (`readings`, `compiled`)."""

    __slots__ = ()

    if TYPE_CHECKING:
        speller: Speller
        position: Node
        due: list[Node]
        _nodes: list[Node]
        _pieces: Sequence[bytes]

    @abstractmethod
    def _forget_all(self) -> None:
        """No reading is left, and nothing that was listed."""

    def restart(self) -> bool:
        """Say what is pending in whole tokens, and be asked anew: nothing that was pending may be said. False: nothing is pending."""
        pending = [node for node in self._nodes if node.said]
        if not pending:
            return False
        last = max(pending, key=lambda n: n.weight)
        self._forget_all()
        self._start_over(last, self.speller.encode(last.said, last.spoken[-1]))
        return True

    def catch_up(self, missed: Sequence[int]) -> None:
        """The group has said these pieces without asking this member: it is to read them, in tokens of its own, in one pass."""
        base, tail = self._behind(missed)
        self._forget_all()
        self._start_over(base, self._read(tail, missed))

    def passes_behind(self, missed: Sequence[int]) -> int:
        """Forward passes that reading these pieces as they came would have taken."""
        base, tail = self._behind(missed)
        return (len(self._read(tail, missed)) if missed else 0) + (base in self.due)

    def _behind(self, missed: Sequence[int]) -> tuple[Node, bytes]:
        """The likeliest place that this member has reached, and what was said since."""
        base = self.due[-1] if self.due else max(self._nodes, key=lambda n: n.weight, default=self.position)
        return base, base.said + b"".join([self._pieces[piece] for piece in missed])

    def _read(self, tail: bytes, pieces: Sequence[int]) -> Sequence[int]:
        """Tokens that say `tail`, the last pieces of which are `pieces`."""
        return pieces if self.speller.same else self.speller.encode(tail, pieces[-1])

    def _retell(self, boundary: Node, text: bytes, piece: int) -> None:
        """No reading fits: say `text`, which came behind the boundary and ends with `piece`, in tokens of the member's own."""
        self._start_over(boundary, self.speller.encode(text, piece))

    def _start_over(self, boundary: Node, tokens: Sequence[int]) -> None:
        """No reading fits: go on from the last token boundary with these tokens of the member's own, which say what came behind it.

        Where the member has no token for any of it, it goes on from the boundary, as if nothing had been said.
        """
        node = boundary
        for token in tokens:
            node = type(boundary)(node, token)
        node.start()
        self.due = [node]  # type: ignore[misc] # a slot of those who inherit
