"""When a group reads ahead, and what each member reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from backends.types import TopK, Vocabulary
from strategies.engine.drafting.ahead import Ahead
from strategies.engine.drafting.leading import Leader
from strategies.engine.drafting.pace import WIDTHS, Pace
from strategies.engine.drafting.verdicts import Scored, usable
from strategies.engine.events import DraftReport
from strategies.fusion import Node, route
from strategies.vocabulary import Inventory, table_of

BYTES = 12
"""Bytes that a guess has for each token of a draft, and once more: tokens that it ends within are left out."""
WHOLE = 0.99
"""Share of a member's mass on the reading that a draft follows, where its distributions have to be judged."""


COPIED, LED = "copied", "led"
"""The proposers' names."""


class Proposer(Protocol):
    """Guesses what comes next."""

    def guess(self, said: bytes, most: int) -> bytes:
        """What may follow `said`, at most so many bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a member reads next: the last node that is due, and the ids that may be said behind it. guessed: False where they were
    said already."""

    member: int
    node: Node
    draft: Sequence[int]
    guessed: bool = True


class Drafts:
    """See the module. Members are numbered as the group numbers them. `plan` before every round of steps; `scored` with what came of it;
    `stepped` behind every round. sessions: one per member. lead: whether one of them may run ahead (only sessions without noise may)."""

    __slots__ = (
        "_before", "_began", "_by", "_confirmed", "_drafters", "_inventory", "_led", "_pace", "_passes", "_proposers", "_room", "_rounds",
        "_seconds", "_spared", "_stepping", "_tables", "_tokens", "leader", "sessions",
    )  # fmt: skip

    def __init__(
        self,
        sessions: Sequence[Ahead],
        vocabularies: Sequence[Vocabulary],
        inventory: Inventory,
        copier: Proposer,
        pace: Pace,
        *,
        lead: bool,
    ) -> None:
        self.sessions = sessions
        self._tables = [table_of(vocabulary) for vocabulary in vocabularies]
        self._inventory = inventory
        self._pace = pace
        self._proposers: dict[str, Proposer] = {COPIED: copier}
        self.leader = Leader(sessions, vocabularies) if lead else None
        if self.leader is not None:
            self._proposers[LED] = self.leader
        self._by = COPIED  # whose draft the last one was
        self._drafters: Sequence[int] = ()  # who read it
        self._led = 0  # drafts of the leader's
        self._passes = self._spared = 0
        self._tokens = 0  # of the last draft, until it is settled
        self._confirmed = self._rounds = 0
        self._seconds = 0.0
        self._room: int | None = None  # pieces that may still be said
        self._stepping: Sequence[Ahead] = ()  # who is in the round of steps
        self._before, self._began = 0, 0.0  # their passes, and the time, when it began

    def plan(
        self,
        due: Sequence[Sequence[Node]],
        places: Sequence[Node | None],
        live: Sequence[int],
        said: bytes,
        room: int | None,
        late: float = 0.0,
    ) -> list[Plan]:
        """due: as the fuser says. places: where the sessions stand. live: members that are left. room: pieces that may still be said.
        late: seconds that it may take until all who are behind can read it, too."""
        self._room = room
        waiting = self._waiting(due, places, live)
        if not waiting:
            return []
        self._settle()
        offers = {name: self._pace.offer(name, late) for name in self._proposers}
        for name in sorted(offers, key=offers.__getitem__, reverse=True):  # of equal ones the first stays first
            offer = offers[name]
            width = offer.width if room is None else min(offer.width, room - 1)
            if width >= 1 and (guess := self._proposers[name].guess(said, BYTES * (width + 1))):
                self._by = name
                return self._plans(waiting, due, guess, width)
        return []

    def _plans(self, waiting: Mapping[int, int], due: Sequence[Sequence[Node]], guess: bytes, width: int) -> list[Plan]:
        whole = BYTES * (width + 1)
        drafts = [self._encode(member, guess, min(width, most), whole) for member, most in waiting.items()]
        if not all(drafts):
            return []
        # All read equally far: who reads further waits for the others.
        far = min(sum(map(len, self._texts(member, draft))) for member, draft in zip(waiting, drafts, strict=True))
        plans = []
        for member, draft in zip(waiting, drafts, strict=True):
            kept, bytes_ = [], 0
            for token, text in zip(draft, self._texts(member, draft), strict=True):
                bytes_ += len(text)
                if bytes_ > far:
                    break
                kept.append(token)
            if not kept:
                return []
            plans.append(Plan(member, due[member][-1], kept))
        return plans

    def stands(self, member: int, said: int) -> None:
        """A member's session stands where so many bytes had been said."""
        if self.leader is not None and member == self.leader.member:
            self.leader.stands(said)

    async def run_on(self, limit: Callable[[], AbstractContextManager[object]]) -> int:
        """The leader's part of a round, once its own call is over: as far as a draft of its guess would go, and the text may. Returns its
        passes. limit: see `Leader.run`."""
        assert self.leader is not None
        width = self._pace.offer(LED).width
        most = width + 1 if width else 0
        return await self.leader.run(most if self._room is None else min(most, self._room - 1), limit)

    def scored(self, plans: Sequence[Plan], rows: Sequence[list[TopK] | None], seconds: float) -> None:
        """rows: as `Ahead.read_ahead` gave them. seconds: until the last one was there."""
        read = [(plan, tops) for plan, tops in zip(plans, rows, strict=True) if tops is not None]
        self._passes += 1
        self._seconds = seconds
        self._tokens = max(len(plan.draft) for plan in plans)
        self._drafters = [plan.member for plan in plans]
        self._confirmed = self._sum_confirmed()
        self._led += self._by == LED
        self._rounds = 0
        if self._pace.exact:
            return
        whole = len(read) == len(plans)
        scored = [
            Scored(self._inventory.spellers[plan.member], plan.draft, tops, self.sessions[plan.member].noise or 0.0)
            for plan, tops in read
        ]
        good = usable(scored) if whole else [0] * len(read)
        for (plan, _), count in zip(read, good, strict=True):
            if self.sessions[plan.member].noise:
                self.sessions[plan.member].trust(count)

    def waited(self, seconds: float) -> None:
        """It took so long until all who were behind could read a draft."""
        self._pace.waited(seconds)

    def left(self, member: int) -> None:
        """The group goes on without this member."""
        self._pace.left(member)

    def stepping(self, behind: Collection[int]) -> None:
        """A round of steps begins. behind: members that are not in it, whatever they do meanwhile."""
        self._stepping = [session for member, session in enumerate(self.sessions) if member not in behind]
        self._before, self._began = sum([session.passes for session in self._stepping]), time.perf_counter()

    def stepped(self, *, prompt: bool) -> None:
        """The round is over, with what was looked up in it. prompt: it read the prompts."""
        if sum([session.passes for session in self._stepping]) > self._before:
            if not self._tokens:
                self._pace.stepped(None if prompt else time.perf_counter() - self._began)
        else:
            self._rounds += 1

    def report(self) -> DraftReport:
        """Of the whole stage, when it is over."""
        self._settle()
        return DraftReport(
            proposed=sum(session.drafted for session in self.sessions),
            accepted=sum(session.confirmed for session in self.sessions),
            passes=self._passes,
            spared=self._spared,
            settled=sum(session.settled for session in self.sessions),
            led=self._led,
        )

    def _settle(self) -> None:
        """Tell the pace what the last draft was good for."""
        if self._tokens:
            # Of all members together the mean; those of one tokenizer confirm alike.
            each = round((self._sum_confirmed() - self._confirmed) / len(self._drafters))
            spared = self._rounds - 1  # the round in which it was scored is not one; it may have taken another pass
            self._spared += max(0, spared)
            self._pace.drafted(self._by, self._tokens, min(each, self._tokens), spared, self._seconds)
            self._tokens = 0

    def _sum_confirmed(self) -> int:
        return sum(self.sessions[member].confirmed for member in self._drafters)

    def _waiting(
        self, due: Sequence[Sequence[Node]], places: Sequence[Node | None], live: Sequence[int]
    ) -> dict[int, int]:
        """Members that need a pass now, and may read on behind it: so many ids at most."""
        waiting: dict[int, int] = {}
        for member in live:
            session, place = self.sessions[member], places[member]
            if not due[member] or session.full:
                continue
            if place is None:
                return {}  # the prompt comes first
            drop, append = route(place, due[member][-1])
            room = session.room(append, drop)
            if append and (room is None or room >= 1) and not session.knows(append, drop):
                waiting[member] = WIDTHS[-1] if room is None else room
        if self._pace.exact:
            return waiting
        # Then it takes all of them, and nothing else to be thought of, to be sure of anything.
        alone = all(len(due[m]) == 1 and due[m][0].weight >= WHOLE for m in waiting)
        return (
            waiting
            if alone and len(waiting) == len(live) and all(self._one_on(due[m][0], places[m]) for m in waiting)
            else {}
        )

    @staticmethod
    def _one_on(node: Node, place: Node | None) -> bool:
        """Whether the node is one id behind the place."""
        return node.parent is place

    def _encode(self, member: int, guess: bytes, width: int, whole: int) -> Sequence[int]:
        tokens = self._tables[member].encode(guess)
        if len(guess) == whole:
            tokens = tokens[:-1]  # it may go on
        return tokens[:width]

    def _texts(self, member: int, tokens: Sequence[int]) -> list[bytes]:
        return [self._tables[member].vocabulary.tokens[token] for token in tokens]
