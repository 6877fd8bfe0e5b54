"""How far to read ahead. It changes how fast a text is written, never the text.

Model. If every token of a draft is confirmed with probability a, given those before it, a draft of n tokens is expected to spare
A(n) = a + a² + … + aⁿ steps (Leviathan et al., ICML 2023), for one pass over n + 1 tokens instead of one over one. It pays where
(1 + A(n)) / C(n + 1) > 1 / C(1), with C the seconds of a pass by its length, those of the member that takes longest. Where scored
distributions are not equal to single steps', one step less is spared: the place behind the last confirmed token is stepped again.

Who guessed makes a difference: what was copied fits or does not, a member that runs ahead is right more evenly. So each proposer has a
yield of its own, and the one whose drafts promise most is asked first.

While nobody has made a pass over several tokens, it is hoped that the further ones cost nothing, or it would never be known.

Guarantee. A balance in seconds: every single step pays `INCOME` of itself in, every draft what it gained or lost. A draft is made only
if the balance covers it being wrong from its first token on; so drafts cost at most `INCOME` of the whole time and one step, `KNOWN` of
one where other requests have found out what longer passes take, or `AT_FIRST` where scored distributions are not equal to single steps'.

Others who share a member's passes wait longer where these read more tokens. What they wait together counts as if the group did, so that
drafts become shorter with every request that is under way at once, and end where there are many, unless longer passes cost nothing. What a
group may lose before it has saved anything becomes less then, too.

A group that does not wait for everybody (`strategies.engine.quorum`) pays less for a step than its slowest member's pass: what its rounds
took is the price there. Before a draft it waits until everybody has caught up, which the balance has to cover, too; it begins with what
that may take once, `AT_FIRST` steps of the slowest. What is expected of a draft leaves that out: where drafts fit, nobody falls behind
between them. Who leaves a group is not reckoned with any more, and the balance shrinks as steps do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from backends.passtimes import PassTimes

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens of a draft, those that are weighed against each other."""
INCOME = 0.02
MOST = 16.0
"""Steps of the slowest member that the balance may hold."""
AT_FIRST = 3
"""Such steps that the first draft may take where one is not enough. Of a group that does not wait: one under way, one over what was
missed, and the draft. Where scored distributions are not equal to single steps': two further tokens, the fewest that spare anything, as if
each took a step, and the step behind them."""
KNOWN = 0.5
"""Of a step, that drafts may cost beyond their income where it is known what they take: enough for some tokens wherever they are cheap."""
FEW = 2
"""Sessions that a model may have open for each group to make a trial of its own; where there are more, it is a part of one."""
SEEN = 4
"""Rounds of such a group that are timed before its first draft: with drafts all the time it would never be known what they spare."""
FADING = 0.85
"""How much every earlier draft counts in what is expected of the next, per draft since."""
HOPE, HOPED = 0.8, 2.0
"""What is expected of the first drafts, and of one that is tried again; as if seen on so many tokens."""
AGAIN = 24
"""Steps after which drafts are tried again where they did not pay; twice as many after each vain trial …"""
RARELY = 384
"""… up to so many."""


@dataclass(frozen=True, slots=True, order=True)
class Offer:
    """ratio: how many times faster the text is expected to go with it. width: tokens of the draft; 0: none should be made."""

    ratio: float
    width: int


NOTHING = Offer(1.0, 0)


class Yield:
    """How well one proposer's guesses fit, the latest counting most."""

    __slots__ = ("_good", "_tried", "_wait", "since", "trial")

    def __init__(self) -> None:
        self._good = self._tried = 0.0
        self.since = 0  # steps since its last draft
        self._wait = AGAIN
        self.trial = False  # its next draft is one, though it did not pay of late

    @property
    def rate(self) -> float:
        """How likely a token of a draft is to be confirmed, those before it being so."""
        return (self._good + HOPE * HOPED) / (self._tried + HOPED)

    @property
    def due(self) -> bool:
        """Whether it is to be tried again."""
        return self.since >= self._wait

    def drafted(self, tokens: int, confirmed: int) -> None:
        self._good = FADING * self._good + confirmed
        self._tried = FADING * self._tried + min(tokens, confirmed + 1)
        self.since = 0

    def judge(self, gain: float) -> None:
        """What the trial gained, in seconds."""
        self._wait = AGAIN if gain > 0 else min(RARELY, 2 * self._wait)
        if gain > 0:
            self._good = self._tried = 0.0


class Pace:
    """See the module. times: of the group's members. always: drafts are as long as they may be, whatever they cost. exact: scored
    distributions are equal to single steps'. waits: for everybody, at every step."""

    __slots__ = ("_balance", "_rounds", "_seen", "_times", "_yields", "always", "exact")

    def __init__(self, times: Sequence[PassTimes], *, always: bool, exact: bool, waits: bool = True) -> None:
        self._times = dict(enumerate(times))
        self._rounds = None if waits else PassTimes()  # what rounds of steps took
        self._seen = 0  # of them
        self.always = always
        self.exact = exact
        self._balance: float | None = None
        self._yields: defaultdict[str, Yield] = defaultdict(Yield)

    def offer(self, by: str, late: float = 0.0) -> Offer:
        """What the next draft of this proposer should be like. late: seconds that are waited for others before it."""
        if self.always:
            return Offer(math.inf, WIDTHS[-1])
        slowest = self._seconds(1)
        if slowest is None or (self._rounds is not None and self._seen < SEEN):
            return NOTHING
        if self._balance is None:
            known = KNOWN if all(times.tried for times in self._times.values()) else 1
            self._balance = (known if self._rounds is None and self.exact else AT_FIRST) * slowest * self._share()
        its = self._yields[by]
        its.trial = False
        step = self._step(slowest)
        offer = self._best(step, its.rate, late)
        if not offer.width and its.due:
            its.trial = True
            offer = self._best(step, HOPE, late)
        return offer

    def stepped(self, seconds: float | None = None) -> None:
        """A step without a draft was made, in so long; None: it read the prompt."""
        for its in self._yields.values():
            its.since += 1
        if self._rounds is not None and seconds is not None:
            self._rounds.took(1, seconds)
            self._seen += 1
        if self._balance is not None and (slowest := self._seconds(1)) is not None:
            self._pay(INCOME * self._step(slowest), slowest)

    def waited(self, seconds: float) -> None:
        """For those who were behind, so that all can read a draft."""
        if self._balance is not None:
            self._balance -= seconds

    def left(self, member: int) -> None:
        """The group goes on without this one: by its place among the times."""
        before = self._seconds(1)
        self._times.pop(member, None)
        if self._balance is not None and before and (slowest := self._seconds(1)) is not None:
            self._balance *= slowest / before

    def drafted(self, by: str, tokens: int, confirmed: int, spared: int, seconds: float) -> None:
        """This proposer's draft of so many tokens was scored in so long; so many of its first ones were said, and so many steps were
        spared."""
        its = self._yields[by]
        its.drafted(tokens, confirmed)
        slowest = self._seconds(1)
        if self._balance is None or slowest is None:
            return
        company = max(times.company(tokens + 1) for times in self._times.values())
        gain = (1 + spared) * self._step(slowest) - seconds - company
        self._pay(gain, slowest)
        if its.trial:
            its.judge(gain)

    def _pay(self, seconds: float, slowest: float) -> None:
        assert self._balance is not None
        self._balance = min(MOST * slowest, self._balance + seconds)

    def _share(self) -> float:
        """Part of a first trial that this group may have: where many are under way, they find out together."""
        return min(1.0, FEW / max(1, *(times.sharing for times in self._times.values())))

    def _step(self, slowest: float) -> float:
        """What the group pays for a step."""
        seen = None if self._rounds is None else self._rounds.step
        return slowest if seen is None else seen

    def _best(self, step: float, rate: float, late: float) -> Offer:
        best, known = NOTHING, all(times.tried for times in self._times.values())
        spared = 0.0 if self.exact else -1.0
        chance, at = 1.0, 0
        assert self._balance is not None
        for width in WIDTHS:
            while at < width:
                chance *= rate
                spared += chance
                at += 1
            seconds = self._seconds(width + 1)
            if seconds is None or late + seconds + (0.0 if self.exact else step) - step > self._balance:
                break
            ratio = (1.0 + spared) * step / (seconds if known else step)
            if ratio > best.ratio:
                best = Offer(ratio, width)
        return best

    def _seconds(self, tokens: int) -> float | None:
        """Of a pass of the slowest member, and what others wait longer for it. None: not all of them are known yet."""
        each = [(times.expected(tokens), times.company(tokens)) for times in self._times.values()]
        known = [seconds + company for seconds, company in each if seconds is not None]
        return max(known) if known and len(known) == len(each) else None
