"""The loudest member decides. A template: replace the formula, the three bounds, and this text.

Formula. S(v) = max_m w_m · P_m(v), v a piece; the largest S wins.
When to use it: to try out how a fuser is made. Cost: as the linear pool. Guarantee: a certified step has the largest S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from strategies.fusion.pool import Pool
from strategies.fusion.readings import View


class LoudestPool(Pool):
    """See the module. floor: scores below it count as it; a setting, as in `fuser: loudest:floor=0.001`."""

    SETTINGS: ClassVar[Mapping[str, tuple[float, float]]] = {"floor": (0.0, 1.0)}

    def __init__(self, *common: Any, floor: float = 0.0, **keywords: Any) -> None:
        super().__init__(*common, **keywords)
        self._floor = floor

    def estimate(self, views: Sequence[View]) -> dict[int, float]:
        """The score of every listed piece. A view's `masses` are not scaled; `seen + fresh` is what they are a part of."""
        listed = set[int]().union(*[view.masses for view in views])
        return {
            piece: self.join([view.masses.get(piece, 0.0) / (view.seen + view.fresh or 1.0) for view in views])
            for piece in listed
        }

    def join(self, probabilities: Sequence[float]) -> float:
        """The formula."""
        return max(self._floor, *[w * p for w, p in zip(self.weights, probabilities, strict=True)], 0.0)

    def low(self, piece: int, views: Sequence[View]) -> float:
        """A member's probability is least if all its unlisted mass belongs to other pieces."""
        return self.join([view.masses.get(piece, 0.0) / (view.seen + view.unseen or 1.0) for view in views])

    def ahead(self, scale: float, winner: int, factor: float, piece: int, views: Sequence[View]) -> float:
        """It is most if all of the unlisted mass that can be on the piece is there, and none elsewhere."""
        highs = []
        for member, view in zip(self.members, views, strict=True):
            bound = min(member.bound(piece), view.unseen)
            highs.append((view.masses.get(piece, 0.0) + bound) / (view.seen + bound or 1.0))
        low = scale * self.floor
        return 1.0 - factor * self.join(highs) / low if low else -1.0

    def unseen(self, views: Sequence[View]) -> float:
        """A piece that nobody lists has at most all that is unlisted."""
        return self.join([view.unseen / (view.seen + view.unseen or 1.0) for view in views])

    def whole(self, scores: Mapping[int, float]) -> float:
        """The scores add up to no fixed number; what clients see as probabilities are parts of the listed ones' sum."""
        return sum(scores.values()) or 1.0
