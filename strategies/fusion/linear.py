"""The linear opinion pool over common pieces: exact, given the members' probabilities.

Formula. P(v) = Σ_m w_m · P_m(v), v a piece (for one tokenizer: eq. 7 of the source paper). Certificate: with low(v) and high(v)
the bounds of P(v) that `readings.View` states, the winner w is certain if low(w) > high(v) for every other v, listed or not. Where the
lists do not suffice, exact values of the few rivals are looked up (Fagin's threshold algorithm: lists are sorted access, look-ups
random access).
When to use it: always, unless you know better. Cost: less than a tenth of a millisecond per piece with three members and k = 20, some
six times that where the core is not compiled (`make bench-fusion`). Guarantee: the likeliest piece of the pool, certified, for any
number of tokenizers; several copies of one model are that model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from strategies.fusion.base import Lookup, NothingToSay
from strategies.fusion.chooser import Greedy
from strategies.fusion.pool import ROUNDING, Pool
from strategies.fusion.readings import View


class LinearPool(Pool):
    """See the module."""

    def _decide(self) -> Sequence[Lookup]:
        if self._field is None and self._chooser.certain:
            if self._core is not None and type(self).estimate is LinearPool.estimate and type(self._chooser) is Greedy:
                return self._decide_natively(self._core)
            views = [member.view() for member in self.members]
            if self._clear(views):
                return self._settle_winner(views)
        return super()._decide()

    def _decide_natively(self, core: ModuleType) -> Sequence[Lookup]:
        """The same in one call, for all that the interpreter does around several takes as long as what they do."""
        worth = self._worth if self._rounds < self.ROUNDS else -1.0
        rivals, places = self._find(core, worth)
        if places:
            self._rounds += 1
            if wanted := self._lookups((self._winner, *rivals[: self.MOST_RIVALS]), among=places):
                return wanted
            if any(member.narrowed for member in self.members):
                self._find(core, -1.0)
        self._settled = True
        return ()

    def _find(self, core: ModuleType, worth: float) -> tuple[Sequence[int], Sequence[int]]:
        """Set the winner and the gap. Its rivals, and which members are worth asking: none if `worth` is negative."""
        rivals: list[int]
        places: list[int]
        found = core.decide(self.members, self.weights, self.same, self._ends, worth)
        if found is None:
            raise NothingToSay
        self._winner, score, self._gap, rivals, places = found
        self._scores = {self._winner: score}
        return rivals, places

    def estimate(self, views: Sequence[View]) -> dict[int, float]:
        if self._core is not None and all(isinstance(view, self._core.View) for view in views):
            scores: dict[int, float] = self._core.pooled(views, self.weights, True)
            return scores
        return _pooled(views, self.weights, estimate=True)

    def low(self, piece: int, views: Sequence[View]) -> float:
        total = 0.0
        for weight, view in zip(self.weights, views, strict=True):
            if mass := view.masses.get(piece, 0.0):
                total += weight * mass / (view.seen + view.unseen)
        return total

    def ahead(self, scale: float, winner: int, factor: float, piece: int, views: Sequence[View]) -> float:
        difference = 0.0
        for member, weight, view in zip(self.members, self.weights, views, strict=True):
            bound = min(member.bound(piece), view.unseen) if view.unseen else 0.0
            apart = scale * view.masses.get(winner, 0.0) - factor * (view.masses.get(piece, 0.0) + bound)
            # Of the totals that are possible, the one that makes least of a lead and most of a lag.
            if apart:
                difference += weight * apart / (view.seen + (view.unseen if apart > 0.0 or self.same else bound))
        floor = scale * self.floor
        return difference / floor if floor else -1.0

    def unseen(self, views: Sequence[View]) -> float:
        return sum(
            [w * self._unlisted(v) / (v.seen + v.unseen) for w, v in zip(self.weights, views, strict=True) if v.unseen],
            0.0,
        )

    def _unlisted(self, view: View) -> float:
        """The most that can be on one piece that is not listed."""
        return min(view.each, view.unseen) if self.same else view.unseen

    def join(self, probabilities: Sequence[float]) -> float:
        return sum([weight * p for weight, p in zip(self.weights, probabilities, strict=True)], 0.0)

    def _clear(self, views: Sequence[View]) -> bool:
        """Whether one piece leads by more than all that is unlisted; then it is the winner, and certain.

        With the lower bounds low(v) = Σ_m scale_m · mass_m(v), scale_m = w_m / (seen_m + unseen_m), no piece exceeds
        low(v) + slack, slack = Σ_m scale_m · unlisted_m. A piece of which no member lists more than a share `mark` has low(v) <= mark:
        so only the few that someone lists with more are added up.
        """
        lists, tops, slack, same = [], [], 0.0, self.same
        for weight, view in zip(self.weights, views, strict=True):
            masses, total = view.masses, view.seen + view.unseen
            if not masses or total <= 0.0:
                return False
            lists.append((weight / total, masses.get))
            tops.append(max(masses.values()))
            slack += weight * (self._unlisted(view) if same else view.unseen) / total
        lows: dict[int, float] = {}
        for top, view in zip(tops, views, strict=True):
            favourite = _first(view.masses, top)
            if favourite not in lows:
                lows[favourite] = _low(lists, favourite)
        winner = max(lows, key=lows.__getitem__)
        mark = lows[winner] - slack - ROUNDING
        if mark <= 0.0:
            return False
        estimate = 0.0
        for top, weight, view in zip(tops, self.weights, views, strict=True):
            masses, seen = view.masses, view.seen
            estimate += weight * masses.get(winner, 0.0) / (seen + view.fresh)
            least = mark * (seen + view.unseen)
            if top >= least:
                for piece, mass in masses.items():
                    if mass >= least and piece != winner and _low(lists, piece) >= mark:
                        return False
        self._winner, self._gap, self._scores = winner, -mark, {winner: estimate}
        return True

    def _rivals(self, views: Sequence[View]) -> list[int]:
        if self._field is not None:
            return super()._rivals(views)
        unseen, low = 0.0, self._scores
        for weight, view in zip(self.weights, views, strict=True):
            if view.unseen:
                unseen += weight * self._unlisted(view) / (view.seen + view.unseen)
                if view.unseen != view.fresh and low is self._scores:
                    low = _pooled(views, self.weights, estimate=False)
        winner = self._winner
        self.floor = floor = low[winner]
        pieces = self._close(low, floor, unseen, views)
        ahead = zip(self._all_ahead(pieces, views), pieces, strict=True)
        rivals = sorted([rival for rival in ahead if rival[0] <= ROUNDING])
        gap = unseen - floor
        if rivals:
            gap = max(gap, 0.0, -rivals[0][0] * floor)
        self._gap = gap
        if unseen >= floor and not rivals:
            return [winner]  # only a piece that nobody listed could win: exact values of the winner may raise its floor
        return [piece for _, piece in rivals]

    def _all_ahead(self, pieces: Sequence[int], views: Sequence[View]) -> list[float]:
        """`ahead` of each, sooner, where nothing is scaled."""
        if not pieces:
            return []
        winner, same = self._winner, self.same
        differences = [0.0] * len(pieces)
        for member, weight, view in zip(self.members, self.weights, views, strict=True):
            mass, most, unseen = view.masses.get, view.seen + view.unseen, view.unseen
            mine = mass(winner, 0.0)
            bounds = member.bounds(pieces) if unseen else [0.0] * len(pieces)
            for index, (piece, bound) in enumerate(zip(pieces, bounds, strict=True)):
                least = min(bound, unseen)
                apart = mine - (mass(piece, 0.0) + least)
                if apart > 0.0 or (same and apart):
                    differences[index] += weight * apart / most
                elif apart:
                    differences[index] += weight * apart / (view.seen + least)
        floor = self.floor
        return [difference / floor for difference in differences] if floor else [-1.0] * len(pieces)

    def _close(self, low: Mapping[int, float], floor: float, unseen: float, views: Sequence[View]) -> list[int]:
        """The pieces for which `_high` may reach the floor, told by wider bounds that cost less."""
        winner, mark = self._winner, floor - unseen  # nothing unlisted adds more to a piece than all of it
        if not all(view.seen for view in views):
            return [piece for piece, value in low.items() if value >= mark and piece != winner]
        stretch, each, late = 1.0, 0.0, 0.0
        for weight, view in zip(self.weights, views, strict=True):
            stretch = max(stretch, (view.seen + view.unseen) / view.seen)
            each += (
                weight * view.each / view.seen
            )  # times the tokens that begin with a piece: what may be unlisted on it …
            late += weight * (view.unseen - view.fresh) / view.seen  # … where no reading is pending
        most, edge = self._most, floor * (1.0 - 1e-9) - late  # rounding must not hide a rival
        return [v for v, p in low.items() if p >= mark and p * stretch + each * most[v] >= edge and v != winner]


def _low(lists: Sequence[tuple[float, Callable[[int, float], float]]], piece: int) -> float:
    """Σ_m scale_m · mass_m(piece). lists: each member's scale, and how to get its mass of a piece."""
    low = 0.0
    for scale, mass in lists:
        low += scale * mass(piece, 0.0)
    return low


def _first(masses: Mapping[int, float], most: float) -> int:
    """The first piece with this mass: one of the first, for lists are sorted."""
    for piece, mass in masses.items():
        if mass == most:
            return piece
    raise ValueError("no piece has this mass")


def _pooled(views: Sequence[View], weights: Sequence[float], *, estimate: bool) -> dict[int, float]:
    """Σ_m w_m · mass_m(v) / total_m: with the estimated totals, or with the largest possible ones for lower bounds."""
    scores: dict[int, float] = {}
    for view, weight in zip(views, weights, strict=True):
        total = view.seen + (view.fresh if estimate else view.unseen)
        if total > 0.0:
            scale = weight / total
            if scores:
                for piece, mass in view.masses.items():
                    scores[piece] = scores.get(piece, 0.0) + mass * scale
            else:
                scores = {piece: mass * scale for piece, mass in view.masses.items()}
    return scores
