"""The linear pool, which need not hear everybody: a piece is said once those who are late can't change it.

Formula. P(v) = Σ_m w_m · P_m(v), as in `linear`; let A be the members whose distributions are missing and S = Σ_{m in A} w_m their weight.
Of those present let low(v) = Σ w_m · mass_m(v) / (seen_m + unseen_m), and slack = Σ w_m · unlisted_m / (seen_m + unseen_m), the most
that any piece can have beyond its low(v) (`LinearPool._clear`); weights are not scaled to those present. The piece w is certain if

    low(w) - slack - max(low(v), v ≠ w; 0) > S + rounding.

Why: an absent member gives w nothing at worst and one other piece everything, so it adds at least -w_m to P(w) - P(v), for every v,
listed or not. These are the bounds of the threshold algorithm (Fagin, Lotem & Naor, 2003) for lists of which nothing was read yet.

Why nothing but time changes. For the bounds that `LinearPool._clear` compares, an absent member's part of low(w) - slack - low(v) is at
least -w_m too, whatever it will list (slack + low(v) <= w_m). So where the rule holds, w leads by more than all that is unlisted once
everybody is heard: plain lock-step finds no rival, says w, and looks up at most w itself, of every member that could lose much of it,
which depends on that member alone. It looks up nothing else, and neither do we. Members that were absent keep the piece in a queue, and
do later what they would have done then, in the same order (`due`, `feed`, `owed`, `repay`, `replay`): their readings become the same.
What is metered is added up in the order of the pieces, so that sums have the same last digits. A member that is dropped is taken to have
left before the first piece of its queue: without it the others' weights grow, and what was certain against its weight is so without it.

When to use it: never by name. The engine takes it for the linear pool where pieces are the members' likeliest and nothing else has a
say, and nothing is told of them but their text (no chooser but the greedy one, no shaping, guide or `Tell`). `Commit.probability` of a
piece said early is that of those present, a lower bound.
Cost: a few microseconds each time that somebody is missing. Guarantee: text, certificates and meters of the linear pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.types import LogProbs, TopK
from strategies.fusion.base import Commit, Lookup, Node
from strategies.fusion.field import MOST_ASKED
from strategies.fusion.linear import LinearPool, _pooled
from strategies.fusion.meters import Certificate
from strategies.fusion.pool import ROUNDING
from strategies.fusion.readings import View


@dataclass(slots=True, eq=False)
class _Said:
    """A piece that was said without everybody. number: of the piece. waiting: who has not said it yet. lost: of those who have, the share
    of their mass that they lost by it. supplied: something was looked up for it."""

    number: int
    piece: int
    waiting: set[int]
    lost: dict[int, float]
    supplied: bool


class QuorumPool(LinearPool):
    """See the module.

    Order of operations, beyond that of `Fuser`: before `wants`, and with nothing else between it and `commit`, `sure` is asked; if it is
    True, the piece can be decided now. For a member that is `behind`, once it has been fed all that is due: `owed`, `repay` if there
    was something, `replay`; and again from its `due`, until it is behind no more.

    early: pieces said without everybody. lag: the most pieces that a member was behind.
    """

    def __init__(self, *common: Any, **keywords: Any) -> None:
        super().__init__(*common, **keywords)
        if self._field is not None or self._tell is not None or not self._chooser.certain:
            raise ValueError("only the members' likeliest pieces can be said without everybody")
        self._queues: dict[int, deque[_Said]] = {number: deque() for number in self._left}
        self._open: deque[_Said] = deque()
        self._absent: frozenset[int] = frozenset()  # those without whom the next piece is being decided
        self._flags = bytearray()  # of every piece: 1 if it was certain from the lists alone
        self.early = 0
        self.lag = 0

    # Who is here, and whether that is enough

    def missing(self) -> list[int]:
        """Members that have still to be heard for the next piece."""
        queues, everyone = self._queues, self.everyone
        return [number for number in sorted(self._left) if queues[number] or everyone[number].due]

    def sure(self) -> bool:
        """Whether everybody was heard, or nobody missing can change the next piece."""
        missing = self.missing()
        if not missing:
            self._together()
            return True
        everyone = sorted(self._left)
        weights = dict(zip(everyone, self._scaled(everyone), strict=True))
        weight = self._absent_weight([weights[number] for number in missing])
        here = [number for number in everyone if number not in missing]
        if weight >= 0.5 or not here:  # those present have no more, so no piece of theirs can lead by it
            self._together()
            return False
        if self._absent != (absent := frozenset(missing)):
            self._decide_anew()
            self._absent = absent
        self.numbers = tuple(here)
        self.members = [self.everyone[number] for number in here]
        self.weights = tuple([weights[number] for number in here])
        views = [member.view() for member in self.members]
        if self._leads(views, weight):
            return True
        self._together()
        return False

    def _absent_weight(self, weights: Sequence[float]) -> float:
        """The most by which those who are missing can take the winner's lead away."""
        return sum(weights, 0.0)

    def _leads(self, views: Sequence[View], missing: float) -> bool:
        """Whether one piece leads those present by more than `missing`; then it is the winner."""
        if not self._clear(views):
            return False
        mark = -self._gap - missing - ROUNDING
        if mark <= 0.0:
            return False
        lows = _pooled(views, self.weights, estimate=False) if self._core is None else self._lows(views)
        winner = self._winner
        if any(low >= mark for piece, low in lows.items() if piece != winner):
            return False
        self._gap = -mark
        return True

    def _lows(self, views: Sequence[View]) -> dict[int, float]:
        assert self._core is not None
        lows: dict[int, float] = self._core.pooled(views, self.weights, False)
        return lows

    def _together(self) -> None:
        """Nobody is left out of the next piece: decide it as if nothing had been tried before."""
        if self._absent:
            self._absent = frozenset()
            self._play(self._left)
            self._decide_anew()

    def _decide_anew(self) -> None:
        """Others take part than a moment ago: what could not be had of those has no meaning for these."""
        self._decided = self._settled = self._wished = False
        self._may_ask = True
        self._rounds = 0

    # The protocol of a fuser

    def feed(self, member: int, node: Node, top: TopK) -> None:
        self.everyone[member].feed(node, top)
        if not self._queues[member]:
            self._decided = self._settled = False

    def _decide(self) -> Sequence[Lookup]:
        if self._absent:  # `sure` has just set the winner
            return self._settle_winner([member.view() for member in self.members])
        return super()._decide()

    def commit(self) -> Commit:
        said = super().commit()
        if self._absent:
            self.early += 1
            self._together()
        return said

    def drop(self, member: int) -> None:
        self._together()
        for said in self._queues[member]:
            said.waiting.discard(member)
        self._queues[member].clear()
        super().drop(member)
        self._add_up()

    def _count(self) -> Certificate:
        certificate = super()._count()
        self._flags.append(certificate == "certified")
        return certificate

    def _say(self, piece: int) -> None:
        if not self._absent:
            super()._say(piece)
            return
        said = _Said(len(self._flags) - 1, piece, set(self._absent), {}, self._supplied)
        self._open.append(said)
        for number in self._absent:
            self._queues[number].append(said)
            self.lag = max(self.lag, len(self._queues[number]))
        for number in self.numbers:
            self._advance(number, said)

    # Catching up

    def behind(self, member: int) -> int:
        """Pieces that were said without this member, and that it has not said yet."""
        return len(self._queues[member])

    def unread(self, member: int) -> list[int]:
        """These pieces."""
        return [said.piece for said in self._queues[member]]

    def unread_bytes(self, member: int) -> int:
        """Their length."""
        return sum([len(self._pieces[said.piece]) for said in self._queues[member]])

    def tokens(self, member: int, pieces: Sequence[int]) -> Sequence[int]:
        """Tokens of the member's own that say these pieces."""
        speller = self.everyone[member].speller
        return pieces if speller.same else speller.table.encode(b"".join([self._pieces[piece] for piece in pieces]))

    def owed(self, member: int) -> Lookup | None:
        """What would have been looked up of this member, fed all that is due, for the first piece that it is behind. Asked once."""
        readings, piece = self.everyone[member], self._queues[member][0].piece
        view = readings.view()
        limit = self._worth * view.masses.get(piece, 0.0)
        if not (view.unseen > limit and readings.bound(piece) > limit):
            return None
        ids = readings.missing((piece,), MOST_ASKED)
        return Lookup(member, ids) if len(ids) else None

    def repay(self, lookup: Lookup, logprobs: LogProbs) -> None:
        """The values of `owed`: float64 [len(lookup.ids)], nats."""
        self.everyone[lookup.member].supply(logprobs)
        said = self._queues[lookup.member][0]
        if not said.supplied:
            said.supplied = True
            self._flags[said.number] = 0
            self._certified -= 1
            self._looked_up += 1

    def replay(self, member: int) -> None:
        """The member says the first piece that it is behind."""
        self._advance(member, self._queues[member].popleft())
        self._decided = self._settled = False
        self._add_up()

    def _advance(self, member: int, said: _Said) -> None:
        readings = self.everyone[member]
        readings.advance(said.piece)
        said.waiting.discard(member)
        said.lost[member] = readings.lost
        self._drift += readings.repaired

    def _add_up(self) -> None:
        """What was lost by pieces that everybody has said, in their order."""
        while self._open and not self._open[0].waiting:
            lost = self._open.popleft().lost
            numbers = sorted(lost)
            for number, weight in zip(numbers, self._scaled(numbers), strict=True):
                self._lost += weight * lost[number]
                self._worst_lost = max(self._worst_lost, lost[number])

    # What is metered

    def certain(self, last: int) -> tuple[int, int]:
        """Of the last so many pieces, how many were certain from the lists alone: at least, and as it looks now. The two differ while
        somebody is behind: it may have to look something up for them."""
        first = max(0, len(self._flags) - last)
        now = sum(self._flags[first:])
        return now - sum([self._flags[said.number] for said in self._open if said.number >= first]), now
