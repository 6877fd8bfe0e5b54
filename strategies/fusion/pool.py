"""What all pools over common pieces have in common: the order of calls, certificates, look-ups, guides, counts.

A subclass says how members' masses become one score, and between which bounds that score lies. From this the winner follows, its
certificate (its lower bound beats every other upper bound), and what must be looked up where the lists do not suffice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from backends.types import LogProbs, TopK, Vocabulary
from strategies.fusion import native
from strategies.fusion.base import Commit, Detail, Guide, Lookup, Node, NothingToSay, Tell
from strategies.fusion.chooser import Chooser
from strategies.fusion.field import MOST_ASKED, Field
from strategies.fusion.meters import Certificate, Meters
from strategies.fusion.readings import Readings, View
from strategies.fusion.telling import NO_MORE, More, detail, favourites, probability, worth_telling
from strategies.vocabulary import inventory_of

UNLISTED = 20.0
"""How much unlisted mass on the winner, in shares that are worth a forward pass, is worth a look-up. It is a bound: of three models' full
distributions the mass itself was 1-8 % of it."""
ROUNDING = 1e-12
"""More than what adding up in another order can change."""
THIN = 1e-3
"""Where a guide leaves few pieces and less than this part of their mass may be unlisted, a draw is made from what is listed."""


class Pool(ABC):
    """See the module. `weights` are positive and add up to 1.

    beam, share: see `Readings`. Members with one tokenizer never branch, whatever the beam.

    For subclasses: `members` and `weights` are the readings of those who have a say now, and their weights, scaled to one; `numbers` are
    the places of these among `everyone`. `same`: all have one tokenizer. `views` are `[member.view() for member in members]`.
    """

    certifies: ClassVar[bool] = True
    unanimous: ClassVar[bool] = True
    """Whether a greedy step always says what every member gives more than half of its mass, however much more."""
    MOST_RIVALS = 8
    """Rivals looked up at once."""
    ROUNDS = 2
    """Times that rivals are looked up per piece."""

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        weights: Sequence[float],
        chooser: Chooser,
        *,
        guide: Guide | None = None,
        tell: Tell | None = None,
        beam: int = 2,
        share: float = 0.005,
    ) -> None:
        inventory = inventory_of(vocabularies)
        self._pieces = inventory.pieces
        self._ends = inventory.ends
        self._most = inventory.most
        self.same = inventory.same
        self._chooser = chooser
        shaping = chooser.shaping
        self._field = None if guide is None and shaping is None else Field(guide, shaping, inventory)
        self._tell = tell
        self._worth = UNLISTED * share
        self._core = native.core
        kind: type[Readings] = Readings if self._core is None else self._core.Readings
        self.everyone = [kind(s, inventory.pieces, beam=beam, share=share) for s in inventory.spellers]
        self._given = tuple(weights)
        self._left = set(range(len(self.everyone)))
        self._play(self._left)
        self._scores: Mapping[int, float] = {}
        self._winner = -1
        self._decided = self._settled = self._wished = self._told = False
        self._may_ask = True
        self._rounds = 0
        self._supplied = False
        self._telling: list[int] = []
        self._more: dict[int, More] = {}
        self._pieces_said = self._certified = self._looked_up = self._uncertified = self._sampled = self._drift = 0
        self._gap = self._worst_gap = self._lost = self._worst_lost = self.floor = 0.0

    # What a subclass says

    @abstractmethod
    def estimate(self, views: Sequence[View]) -> dict[int, float]:
        """Score of every listed piece, as well as it is known. Empty or all zero: nothing is listed."""

    @abstractmethod
    def ahead(self, scale: float, winner: int, factor: float, piece: int, views: Sequence[View]) -> float:
        """How far scale · score(winner) is certainly above factor · score(piece), as a part of the former; not positive: perhaps
        not at all.

        Bounds may use that what a member does not list makes its total mass larger for both pieces alike. `floor` is `low(winner)`.
        """

    @abstractmethod
    def unseen(self, views: Sequence[View]) -> float:
        """Upper bound of the score of any piece that no member lists."""

    @abstractmethod
    def low(self, piece: int, views: Sequence[View]) -> float:
        """Lower bound of a score, to be compared with `unseen`."""

    @abstractmethod
    def join(self, probabilities: Sequence[float]) -> float:
        """Score of a piece from its probabilities, one per member in play."""

    def whole(self, scores: Mapping[int, float]) -> float:
        """What all scores add up to, these being what is known of them: a score divided by it is a probability."""
        return 1.0

    # The protocol of a fuser

    def due(self) -> Sequence[Sequence[Node]]:
        if self._core is not None:
            due: Sequence[Sequence[Node]] = self._core.due(self.everyone)
            return due
        return [tuple(member.due) for member in self.everyone]

    def feed(self, member: int, node: Node, top: TopK) -> None:
        self.everyone[member].feed(node, top)
        self._decided = self._settled = False

    def wants(self) -> Sequence[Lookup]:
        if self._decided:
            if not self._wished:
                return ()
            self._may_ask = False  # what was wished for can't be had
        self._decided, self._wished = True, False
        if not self._settled:
            wanted = self._decide()
            if wanted:
                self._wished = True
                return wanted
            if not self._settled:
                for member in self.members:
                    if member.due:
                        return ()
                self._settled = True
        return () if self._tell is None or self._told else self._ask_to_tell()

    def supply(self, lookup: Lookup, logprobs: LogProbs) -> None:
        member = self.everyone[lookup.member]
        if self._settled:
            self._more[lookup.member] = member.weigh(logprobs)
            return
        member.supply(logprobs)
        self._decided = False
        self._supplied = True

    def commit(self) -> Commit:
        piece, end = self._winner, self._winner in self._ends
        certificate = self._count()
        if self._tell is None:
            told, probability = None, self._scores.get(piece, 0.0) / self.whole(self._scores)
        else:
            told, probability = self._detail(certificate)
        if self._field is not None:
            self._field.said(piece)
        if not end:
            self._say(piece)
        self._rounds = 0
        self._decided = self._settled = self._wished = self._supplied = self._told = False
        self._may_ask = True
        return Commit(b"" if end else self._pieces[piece], end, probability, told)

    def _say(self, piece: int) -> None:
        """All in play advance."""
        if self._core is not None:
            said = self._core.say(self.members, self.weights, piece, self._lost, self._worst_lost)
            drift, self._lost, self._worst_lost = said
            self._drift += drift
        else:
            for member, weight in zip(self.members, self.weights, strict=True):
                member.advance(piece)
                self._drift += member.repaired
                self._lost += weight * member.lost
                self._worst_lost = max(self._worst_lost, member.lost)

    def drop(self, member: int) -> None:
        self._left.discard(member)
        self.everyone[member].due = []
        self._play(self._left)
        self._decided = self._settled = self._told = False

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

    # How a piece is decided

    def _play(self, numbers: Iterable[int]) -> None:
        """Who has a say now; the weights are scaled to one."""
        self.numbers = tuple(sorted(numbers))
        self.members = [self.everyone[number] for number in self.numbers]
        self.weights: Sequence[float] = self._scaled(self.numbers)

    def _scaled(self, numbers: Sequence[int]) -> tuple[float, ...]:
        """The weights of these members, scaled to one."""
        given = [self._given[number] for number in numbers]
        whole = 1.0 if len(given) == len(self._given) else sum(given)
        return tuple([weight / whole for weight in given])

    def _decide(self) -> Sequence[Lookup]:
        """Set the winner and the gap that its strongest rival leaves, or say what should be looked up first. Raises NothingToSay.

        May set `_settled` where nothing is to be looked up, and nobody was set on tokens of its own.
        """
        views = [member.view() for member in self.members]
        self._scores = scores = self.estimate(views)
        field = self._field
        if field is not None:
            field.begin()
            if field.only is not None:
                self._winner, self._gap = field.only, -1.0
                return self._settle_winner(views)
            scores = field.apply(scores)
            if wanted := self._ask_first(field, scores, views):
                return wanted
        if not scores:
            if field is None:
                raise NothingToSay
            return self._search(field, views, found=False)
        self._winner = self._chooser.choose(scores)
        self._gap = 0.0
        if not self._chooser.certain:
            return []
        if wanted := self._contest(views):
            return wanted
        if field is not None and self._gap >= 0.0 and field.poor(self._scores, scores, self.unseen(views)):
            return self._search(field, views, found=True)
        return []

    def _contest(self, views: Sequence[View]) -> Sequence[Lookup]:
        """The gap that the winner's strongest rival leaves, or what should be looked up first."""
        rivals = self._rivals(views)
        if self._rounds < self.ROUNDS and (among := range(len(views)) if rivals else self._losing_much(views)):
            self._rounds += 1
            if wanted := self._lookups((self._winner, *rivals[: self.MOST_RIVALS]), among=among):
                return wanted
            if any(member.narrowed for member in self.members):
                self._rivals(views)
        return []

    def _settle_winner(self, views: Sequence[View]) -> Sequence[Lookup]:
        """The winner is certain; look it up where a member would lose much of it."""
        if self._rounds >= self.ROUNDS or not (among := self._losing_much(views)):
            return ()
        self._rounds += 1
        return self._lookups((self._winner,), among=among)

    def _ask_first(self, field: Field, scores: Mapping[int, float], views: Sequence[View]) -> Sequence[Lookup]:
        """Pieces that may matter whether they are listed or not: once per piece of the answer."""
        if self._rounds:
            return []
        asked = list(field.wished)
        thin = not self._chooser.certain and self.unseen(views) > THIN * sum(scores.values())
        if field.few is not None and thin:
            asked.extend(field.few)
        if not asked:
            return []
        self._rounds += 1
        return self._lookups(asked)

    def _search(self, field: Field, views: Sequence[View], *, found: bool) -> Sequence[Lookup]:
        """No list has what may come next, or something unlisted may be likelier: look it up, as much of it as is bearable."""
        while self._may_ask and (batch := field.batch()):
            if wanted := self._lookups(batch, max(MOST_ASKED, self._most[batch[0]])):
                return wanted
        if found:
            return []
        if again := [member for member in self.members if member.restart()]:
            field.again()
            self._drift += len(again)
            return []
        winner = field.some()
        if winner is None:
            raise NothingToSay
        self._winner, self._gap = winner, self.unseen(views)
        return []

    def _rivals(self, views: Sequence[View]) -> list[int]:
        """Pieces that could yet beat the winner, strongest first; sets the gap that the strongest leaves."""
        field, winner = self._field, self._winner
        pieces = set[int]().union(*[view.masses for view in views])
        unseen = self.unseen(views)
        scale = 1.0
        if field is not None:
            pieces |= field.named
            unseen = 0.0 if field.few is not None else unseen
            scale = field.factor(winner)
        self.floor = floor = self.low(winner, views)
        margin = 1.0 - unseen / (scale * floor) if unseen and floor else float(not unseen)
        rivals = []
        for piece in pieces:
            factor = 1.0 if field is None else field.factor(piece)
            if piece != winner and factor:
                ahead = self.ahead(scale, winner, factor, piece, views)
                margin = min(margin, ahead)
                if ahead <= ROUNDING:
                    rivals.append((ahead, piece))
        self._gap = -margin * floor if margin > ROUNDING else max(0.0, -margin * floor)
        rivals.sort()
        if not rivals and margin <= ROUNDING:
            return [winner]  # only a piece that nobody listed could win: exact values of the winner may raise its floor
        return [piece for _, piece in rivals]

    def _losing_much(self, views: Sequence[View]) -> list[int]:
        """Places in `members` of those that may have so much unlisted mass on the winner that it is worth a look-up."""
        winner, share = self._winner, self._worth
        losing: list[int] = []
        if winner in self._ends:
            return losing
        if self._core is not None:
            losing = self._core.losing(self.members, views, winner, share)
        else:
            for place, view in enumerate(views):
                limit = share * view.masses.get(winner, 0.0)
                if view.unseen > limit and self.members[place].bound(winner) > limit:
                    losing.append(place)
        return losing

    def _lookups(
        self, pieces: Sequence[int], most: int = MOST_ASKED, *, among: Iterable[int] | None = None
    ) -> list[Lookup]:
        """What has to be asked for exact values of these pieces. among: places in `members`; None: all."""
        if not self._may_ask:
            return []
        pieces = tuple(dict.fromkeys(pieces))
        wanted = []
        for place in range(len(self.members)) if among is None else among:
            ids = self.members[place].missing(pieces, most)
            if len(ids):
                wanted.append(Lookup(self.numbers[place], ids))
        return wanted

    def _count(self) -> Certificate:
        self._pieces_said += 1
        if not self._chooser.certain:
            self._sampled += 1
            return "sampled"
        if self._gap < 0.0:
            self._looked_up += self._supplied
            self._certified += not self._supplied
            return "looked_up" if self._supplied else "certified"
        self._uncertified += 1
        self._worst_gap = max(self._worst_gap, self._gap)
        return "uncertified"

    # What is told

    def _ask_to_tell(self) -> Sequence[Lookup]:
        """Values of the pieces that are told. They are looked at only: what is told never changes what is said."""
        assert self._tell is not None
        self._told = True
        self._more = {}
        scores = self.pooled() if self._tell.top else self._scores
        self._telling = worth_telling(scores, self._pieces, self._ends, self._winner, self._tell.top)
        return self._lookups(self._telling)

    def _detail(self, certificate: Certificate) -> tuple[Detail, float]:
        """What is told, and the winner's pooled probability."""
        tell, winner, name = self._tell, self._winner, self._pieces.__getitem__
        assert tell is not None
        views = [member.view() for member in self.members]
        more = [self._more.get(number, NO_MORE) for number in self.numbers]
        told = {
            piece: self.join([probability(view, m, piece) for view, m in zip(views, more, strict=True)])
            for piece in self._telling
        }
        whole = self.whole({**self._scores, **told})
        told = {piece: score / whole for piece, score in told.items()}
        if not tell.members:
            return detail(told, winner, tell.top, certificate, name), told[winner]
        members: list[float | None] = [None] * len(self.everyone)
        for number, view, m in zip(self.numbers, views, more, strict=True):
            members[number] = probability(view, m, winner)
        others = favourites(views, self.numbers, winner, name)
        return detail(told, winner, tell.top, certificate, name, tuple(members), others), told[winner]

    def pooled(self) -> dict[int, float]:
        """The score of every listed piece, as estimated now; before `commit`."""
        return self.estimate([member.view() for member in self.members])
