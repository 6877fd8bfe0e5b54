"""The linear opinion pool over common pieces: exact, given the members' probabilities.

Formula. P(v) = Σ_m w_m · P_m(v), v a piece (for one tokenizer: eq. 7 of the source paper). Certificate: with low(v) and high(v)
the bounds of P(v) that `readings.View` states, the winner w is certain if low(w) > high(v) for every other v, listed or not. Where the
lists do not suffice, exact values of the few rivals are looked up (Fagin's threshold algorithm: lists are sorted access, look-ups
random access).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.types import LogProbs, TopK, Vocabulary
from strategies.fusion.base import Commit, Lookup, Node, NothingToSay
from strategies.fusion.chooser import Chooser
from strategies.fusion.meters import Meters
from strategies.fusion.readings import Readings, View
from strategies.vocabulary import inventory_of

MOST_RIVALS = 8
MOST_LOOKUPS = 16384
ROUNDS = 2
UNLISTED = 20.0
"""How much unlisted mass on the winner, in shares that are worth a forward pass, is worth a look-up. It is a bound: of three models' full
distributions the mass itself was 1-8 % of it."""
ROUNDING = 1e-12
"""More than what adding up in another order can change."""


class LinearPool:
    """See the module. `weights` are positive and add up to 1.

    beam, share: see `Readings`. Members with one tokenizer never branch, whatever the beam.
    """

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        weights: Sequence[float],
        chooser: Chooser,
        *,
        beam: int = 2,
        share: float = 0.005,
    ) -> None:
        inventory = inventory_of(tuple(vocabularies))
        self._pieces = inventory.pieces
        self._ends = inventory.ends
        self._most = inventory.most
        self._weights = tuple(weights)
        self._chooser = chooser
        self._worth = UNLISTED * share
        self._members = [Readings(s, inventory.pieces, beam=beam, share=share) for s in inventory.spellers]
        self._scores: dict[int, float] = {}
        self._winner = -1
        self._rounds = 0
        self._decided = self._supplied = False
        self._pieces_said = self._certified = self._looked_up = self._uncertified = self._sampled = self._drift = 0
        self._gap = self._worst_gap = self._lost = self._worst_lost = 0.0

    def due(self) -> Sequence[Sequence[Node]]:
        return [tuple(member.due) for member in self._members]

    def feed(self, member: int, node: Node, top: TopK) -> None:
        self._members[member].feed(node, top)
        self._decided = False

    def wants(self) -> Sequence[Lookup]:
        if self._decided:
            return ()
        self._decided = True
        views = [member.view() for member in self._members]
        if self._chooser.certain and self._clear(views):
            if self._rounds >= ROUNDS or not self._loses_much(views):
                return ()
            self._rounds += 1
            return self._lookups((self._winner,))
        self._scores = _pooled(views, self._weights, estimate=True)
        if not self._scores:
            raise NothingToSay
        self._winner = self._chooser.choose(self._scores)
        self._gap = 0.0
        if not self._chooser.certain:
            return ()
        rivals = self._rivals(views)
        if self._rounds >= ROUNDS or not (rivals or self._loses_much(views)):
            return ()
        self._rounds += 1
        wanted = self._lookups((self._winner, *rivals[:MOST_RIVALS]))
        if not wanted:
            self._rivals(views)  # nothing to ask, but the search may have shown that a bound was too wide
        return wanted

    def supply(self, lookup: Lookup, logprobs: LogProbs) -> None:
        self._members[lookup.member].supply(logprobs)
        self._decided = False
        self._supplied = True

    def commit(self) -> Commit:
        piece, end = self._winner, self._winner in self._ends
        self._count()
        if not end:
            for member, weight in zip(self._members, self._weights, strict=True):
                member.advance(piece)
                self._drift += member.repaired
                self._lost += weight * member.lost
                self._worst_lost = max(self._worst_lost, member.lost)
        self._rounds = 0
        self._decided = self._supplied = False
        return Commit(b"" if end else self._pieces[piece], end, self._scores[piece])

    def pooled(self) -> dict[int, float]:
        """P(v) of every listed piece v, as estimated now; before `commit`."""
        return _pooled([member.view() for member in self._members], self._weights, estimate=True)

    @property
    def meters(self) -> Meters:
        return Meters(
            pieces=self._pieces_said,
            certified=self._certified,
            looked_up=self._looked_up,
            uncertified=self._uncertified,
            worst_gap=self._worst_gap,
            sampled=self._sampled,
            drift=self._drift,
            lost_mass=self._lost,
            worst_lost=self._worst_lost,
        )

    def _clear(self, views: Sequence[View]) -> bool:
        """Whether one piece leads by more than all that is unlisted; then it is the winner, and certain.

        With the lower bounds low(v) = Σ_m scale_m · mass_m(v), scale_m = w_m / (seen_m + unseen_m), no piece exceeds
        low(v) + slack, slack = Σ_m scale_m · unseen_m. A piece of which no member lists more than a share `mark` has low(v) <= mark:
        so only the few that someone lists with more are added up.
        """
        scales, slack = [], 0.0
        for weight, view in zip(self._weights, views, strict=True):
            total = view.seen + view.unseen
            if not view.masses or total <= 0.0:
                return False
            scales.append(weight / total)
            slack += weight * view.unseen / total
        lists = [view.masses for view in views]
        lows = {}
        for masses in lists:
            piece = max(masses, key=masses.__getitem__)
            if piece not in lows:
                lows[piece] = sum([s * m.get(piece, 0.0) for s, m in zip(scales, lists, strict=True)], 0.0)
        winner = max(lows, key=lows.__getitem__)
        mark = lows[winner] - slack - ROUNDING
        if mark <= 0.0:
            return False
        for masses, scale, weight in zip(lists, scales, self._weights, strict=True):
            least = mark * weight / scale
            for piece in [v for v, mass in masses.items() if mass >= least and v != winner]:
                if sum([s * m.get(piece, 0.0) for s, m in zip(scales, lists, strict=True)], 0.0) >= mark:
                    return False
        self._winner, self._gap = winner, -mark
        estimate = [
            w * v.masses.get(winner, 0.0) / (v.seen + v.fresh) for w, v in zip(self._weights, views, strict=True)
        ]
        self._scores = {winner: sum(estimate, 0.0)}
        return True

    def _rivals(self, views: Sequence[View]) -> list[int]:
        """Pieces that could yet beat the winner, strongest first; sets the gap that the strongest leaves."""
        unseen, low = 0.0, self._scores
        for weight, view in zip(self._weights, views, strict=True):
            if view.unseen:
                unseen += weight * view.unseen / (view.seen + view.unseen)
                if view.unseen != view.fresh and low is self._scores:
                    low = _pooled(views, self._weights, estimate=False)
        winner = self._winner
        floor = low[winner]
        close = self._close(low, floor, unseen, views)
        rivals = [(high, piece) for piece in close if (high := self._high(piece, views)) >= floor and high > 0.0]
        self._gap = max(max((high for high, _ in rivals), default=0.0), unseen) - floor
        if unseen >= floor and not rivals:
            return [winner]  # only a piece that nobody listed could win: exact values of the winner may raise its floor
        rivals.sort(key=lambda x: (-x[0], x[1]))
        return [piece for _, piece in rivals]

    def _close(self, low: Mapping[int, float], floor: float, unseen: float, views: Sequence[View]) -> list[int]:
        """The pieces for which `_high` may reach the floor, told by wider bounds that cost less."""
        winner, mark = self._winner, floor - unseen  # nothing unlisted adds more to a piece than all of it
        if not all(view.seen for view in views):
            return [piece for piece, value in low.items() if value >= mark and piece != winner]
        stretch, each, late = 1.0, 0.0, 0.0
        for weight, view in zip(self._weights, views, strict=True):
            stretch = max(stretch, (view.seen + view.unseen) / view.seen)
            each += (
                weight * view.each / view.seen
            )  # times the tokens that begin with a piece: what may be unlisted on it …
            late += weight * (view.unseen - view.fresh) / view.seen  # … where no reading is pending
        most, edge = self._most, floor * (1.0 - 1e-9) - late  # rounding must not hide a rival
        return [v for v, p in low.items() if p >= mark and p * stretch + each * most[v] >= edge and v != winner]

    def _loses_much(self, views: Sequence[View]) -> bool:
        """Whether a member may have so much unlisted mass on the winner that it is worth a look-up."""
        winner, share = self._winner, self._worth
        if winner in self._ends:
            return False
        return any(
            view.unseen > share * (mass := view.masses.get(winner, 0.0)) and member.bound(winner) > share * mass
            for member, view in zip(self._members, views, strict=True)
        )

    def _high(self, piece: int, views: Sequence[View]) -> float:
        total = 0.0
        for member, weight, view in zip(self._members, self._weights, views, strict=True):
            bound = min(member.bound(piece), view.unseen) if view.unseen else 0.0
            mass = view.masses.get(piece, 0.0) + bound
            if mass:
                total += weight * mass / (view.seen + bound)
        return total

    def _lookups(self, pieces: Sequence[int]) -> list[Lookup]:
        pieces = tuple(dict.fromkeys(pieces))
        wanted = [Lookup(index, member.missing(pieces, MOST_LOOKUPS)) for index, member in enumerate(self._members)]
        return [lookup for lookup in wanted if lookup.ids]

    def _count(self) -> None:
        self._pieces_said += 1
        if not self._chooser.certain:
            self._sampled += 1
        elif self._gap < 0.0:
            self._looked_up += self._supplied
            self._certified += not self._supplied
        else:
            self._uncertified += 1
            self._worst_gap = max(self._worst_gap, self._gap)


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
