"""The gated pool: one member writes, and the others are asked only where it is unsure.

Formula. The primary is the member with the largest weight, the first of those where several have it. Where it gives its
likeliest piece more than `threshold` (a lower bound, so whatever it did not list changes nothing), the piece is the primary's
alone; elsewhere it is the linear pool's. Asking for help only when unsure: e.g. CALM (Schuster et al., NeurIPS 2022) for
layers, FrugalGPT (Chen, Zaharia & Zou, arXiv 2305.05176) for models. With threshold 1 it is the linear pool, piece for piece.
When to use it: one member is the better writer, and the others are slow or dear.
Cost: where the primary is sure, one forward pass of the primary; the others read nothing meanwhile. When they are asked again,
all that they missed is read in one pass, in tokens that each finds from the left by longest match, which need not be its
tokenizer's own. `Meters.saved` counts the passes they were spared. A step where they are asked takes the primary's time and
then theirs.
Guarantee: every step is certified as in the linear pool of those who took part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from strategies.fusion.base import Commit, Lookup, Node
from strategies.fusion.linear import LinearPool
from strategies.fusion.meters import Meters


class GatedPool(LinearPool):
    """See the module. threshold: probability, in [0, 1]."""

    unanimous: ClassVar[bool] = False  # it does, but the last digits may decide who is asked
    SETTINGS: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0.0, 1.0)}

    def __init__(self, *common: Any, threshold: float = 0.8, **keywords: Any) -> None:
        super().__init__(*common, **keywords)
        self._threshold = threshold
        self._missed: dict[int, list[int]] = {number: [] for number in self._left}
        self._saved = 0
        self._ended = False
        self._alone()

    def due(self) -> Sequence[Sequence[Node]]:
        asked = self.numbers
        return [tuple(member.due) if number in asked else () for number, member in enumerate(self.everyone)]

    def commit(self) -> Commit:
        said = super().commit()
        self._ended = said.end
        if not said.end:
            for number in self._left.difference(self.numbers):
                self._missed[number].append(self._winner)
        self._alone()
        return said

    def drop(self, member: int) -> None:
        alone = len(self.numbers) < len(self._left)
        if missed := self._missed[member]:
            self._saved += self.everyone[member].passes_behind(missed)
        self._missed[member] = []
        super().drop(member)
        if alone:
            self._alone()
            self._catch_up()

    @property
    def meters(self) -> Meters:
        unread = 0 if self._ended else 1  # without an end nobody has read the last piece yet
        behind = [self.everyone[number].passes_behind(self._missed[number]) for number in self._left]
        return replace(super().meters, saved=self._saved + sum(max(0, passes - unread) for passes in behind))

    def _decide(self) -> Sequence[Lookup]:
        if len(self.numbers) < len(self._left) and not self._due() and not self._sure():
            self._play(self._left)
            self._catch_up()
        return [] if self._due() else super()._decide()

    def _due(self) -> bool:
        return any(member.due for member in self.members)

    def _sure(self) -> bool:
        """Whether the primary needs no help with the next piece."""
        (member,) = self.members
        view = member.view()
        if not view.masses or self._threshold >= 1.0:
            return False
        favourite = max(view.masses, key=view.masses.__getitem__)
        if self._field is not None:
            self._field.begin()
            if self._field.only is None and not self._field.factor(favourite):
                return False
        return view.masses[favourite] > self._threshold * (view.seen + view.unseen)

    def _alone(self) -> None:
        """The primary goes first."""
        self._play([min(self._left, key=lambda number: (-self._given[number], number))])

    def _catch_up(self) -> None:
        """All in play read what they missed."""
        for number in self.numbers:
            if missed := self._missed[number]:
                self._saved += self.everyone[number].passes_behind(missed) - 1
                self.everyone[number].catch_up(missed)
                self._missed[number] = []
