"""The geometric (logarithmic) opinion pool over common pieces: what all members can live with.

Formula. G(v) = Π_m P_m(v)^{w_m} / Z, v a piece, Z the sum over all pieces (Genest & Zidek, "Combining Probability
Distributions", Statistical Science 1986; with equal weights the normalised product of experts of Hinton, Neural Computation
2002). A member's zero would be a veto for ever, and a member without a token for some byte has zeros: so P_m(v) counts as 1e-15
at least.
Certificate. Z does not decide who wins. With low_m and high_m the bounds of P_m (`readings.View`), the winner w is certain if Π
low_m(w)^{w_m} > Π high_m(v)^{w_m} for every other v, listed or not.
When to use it: members of like quality, where a piece that one of them finds absurd should not be said. One weak member does
more harm than in the linear pool: it can veto.
Cost: more look-ups than the linear pool, since every member's value of every rival matters; where a server can't look up, an
unlisted piece counts with the most that it could have.
Guarantee: as for the linear pool; several copies of one model are that model.
Probabilities and log-probabilities are scaled by the sum over the listed pieces instead of Z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from strategies.fusion.pool import Pool
from strategies.fusion.readings import Readings, View

LEAST = 1e-15
"""No member's probability of a piece counts for less."""


class GeometricPool(Pool):
    """See the module."""

    MOST_RIVALS = 16
    ROUNDS = 4

    def estimate(self, views: Sequence[View]) -> dict[int, float]:
        listed = set[int]().union(*[view.masses for view in views])
        columns = [
            [_guess(member, view, piece) for piece in listed] for member, view in zip(self.members, views, strict=True)
        ]
        return {piece: self.join(row) for piece, *row in zip(listed, *columns, strict=True)}

    def low(self, piece: int, views: Sequence[View]) -> float:
        return self.join([_share(view.masses.get(piece, 0.0), view.seen + view.unseen) for view in views])

    def ahead(self, scale: float, winner: int, factor: float, piece: int, views: Sequence[View]) -> float:
        nats = math.log(factor) - math.log(scale)  # totals stand on both sides, and cancel
        for member, weight, view in zip(self.members, self.weights, views, strict=True):
            bound = min(member.bound(piece), view.unseen) if view.unseen else 0.0
            mine = max(view.masses.get(winner, 0.0), LEAST)
            nats += weight * math.log(max(view.masses.get(piece, 0.0) + bound, LEAST) / mine)
        return 1.0 - math.exp(min(nats, 700.0))

    def unseen(self, views: Sequence[View]) -> float:
        if not any(view.unseen for view in views):
            return 0.0
        most = [min(view.each, view.unseen) if self.same else view.unseen for view in views]
        return self.join([_share(m, view.seen + view.unseen) for m, view in zip(most, views, strict=True)])

    def join(self, probabilities: Sequence[float]) -> float:
        log = math.log
        return math.exp(sum([w * log(max(p, LEAST)) for w, p in zip(self.weights, probabilities, strict=True)], 0.0))

    def whole(self, scores: Mapping[int, float]) -> float:
        return sum(scores.values(), 0.0) or 1.0


def _share(mass: float, total: float) -> float:
    return mass / total if total > 0.0 else 0.0


def _guess(member: Readings, view: View, piece: int) -> float:
    """A member's probability of a piece; if it does not list it, the most that it can be."""
    mass = view.masses.get(piece)
    if mass is None:
        mass = min(member.bound(piece), view.unseen)
    return _share(mass, view.seen + view.fresh)
