"""A group, round by round: its members are taken where the fuser wants them, and one that fails is dropped or ends the run."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio.lowlevel

from backends.errors import BackendError, BackendTimeout, ContextTooLong
from backends.protocol import Session, WideningSession
from strategies.engine.drafting import Drafts
from strategies.engine.drafting.drafts import Plan
from strategies.engine.events import DraftReport, Dropped, QuorumReport
from strategies.engine.members import Members, deepest
from strategies.engine.options import Options
from strategies.engine.quorum import Quorum
from strategies.engine.waiting import close, contained, together
from strategies.fusion import Commit, Fuser, Lookup, Node, NothingToSay, route

T = TypeVar("T")

WATCHED = 16
"""Pieces after which it is looked at how many of them were certain from the lists alone."""
UNCERTAIN = 0.5
"""If more than this part of them were not, the lists are made twice as long …"""
WIDEST = 8
"""… up to so many times what was asked for."""


class Group:
    """A fuser and its members.

    Members are numbered as the fuser numbers them. names, branches: each one's model, and its place in the stage. opened: an error stands
    for one that could not be opened. pieces: said so far. widened: times that lists were made longer. dropped: who left, in order.
    waited: seconds spent waiting for members. drafts: where the group may read ahead; its sessions are then those of the drafts. quorum:
    where it need not wait for everybody; its fuser is then that one's.
    """

    __slots__ = (
        "_certified", "_drafts", "_ended", "_full", "_on_drop", "_options", "_quorum", "_said", "branches", "dropped", "fuser", "members",
        "pieces", "waited", "widened",
    )  # fmt: skip

    def __init__(
        self,
        names: Sequence[str],
        branches: Sequence[int],
        fuser: Fuser,
        opened: Sequence[Session | BackendError],
        options: Options,
        on_drop: Callable[[Dropped], Awaitable[None]],
        drafts: Drafts | None = None,
        quorum: Quorum | None = None,
    ) -> None:
        self.members = Members(names, opened, fuser, options.member_seconds, self._moved)
        self._drafts = drafts
        self._quorum = quorum
        if quorum is not None:
            quorum.members, quorum.steps = self.members, self
        self._said = bytearray()
        self._options = options
        self._on_drop = on_drop
        self.branches = branches
        self.fuser = fuser
        self._ended = False
        # Where all stood when somebody could read no more; None for one that has yet to say what was said.
        self._full: list[int | None] | None = None
        self.pieces = 0
        self.widened = 0
        self._certified = 0
        self.waited = 0.0
        self.dropped: list[Dropped] = []

    async def start(self, dropped: Sequence[Dropped]) -> None:
        """Before the first piece: tell who was dropped already, and drop who could not be opened. Raises BackendError."""
        for one in dropped:
            self.dropped.append(one)
            await self._on_drop(one)
        for member, session in enumerate(self.members.opened):
            if isinstance(session, BackendError):
                await self.leave(member, session)

    async def advance(self, room: int | None = None) -> None:
        """Everything the fuser needs for its next piece. Raises BackendError: a member's own, or the last one's.

        room: pieces that may still be said, this one included.
        """
        stood = self._standing()
        try:
            if self._quorum is None:
                await self._together(room)
            else:
                await self._early(self._quorum, room)
        except ContextTooLong:
            # Not where they stand now: whose step was over by then, and whose was called off, is a matter of time.
            self._full = stood
            raise

    def _standing(self) -> list[int | None]:
        """How deep each member stands, or is about to; None for one that has yet to say what was said."""
        quorum, due = self._quorum, self.fuser.due()
        return [
            None if quorum is not None and quorum.fuser.behind(member) else deepest(place, nodes)
            for member, (place, nodes) in enumerate(zip(self.members.places, due, strict=True))
        ]

    async def _together(self, room: int | None) -> None:
        fuser, drafts = self.fuser, self._drafts
        while True:
            if drafts is not None and any(fuser.due()):
                await self._read_ahead(drafts, room)
                drafts.stepping(())
            due = fuser.due()
            calls = [(member, self.members.visit(member, nodes)) for member, nodes in enumerate(due) if nodes]
            await self._round(calls, [len(due[member]) * self.members.expected(member, 1) for member, _ in calls])
            while wanted := self._wants():
                await self._supply(wanted)
            if drafts is not None and any(due):
                drafts.stepped(prompt=not self.pieces)
            if not any(fuser.due()):
                return

    async def _early(self, quorum: Quorum, room: int | None) -> None:
        """Without those who can't change the next piece."""
        drafts, due = self._drafts, self.fuser.due()
        if drafts is not None and any(due):
            await self._read_ahead_together(drafts, quorum, due, room)
            drafts.stepping(quorum.lagging)
        began = time.perf_counter()
        while True:
            try:
                await quorum.gather(everybody=self._may_widen(quorum))
            finally:
                self.waited += time.perf_counter() - began
            if not (wanted := self._wants()):
                break
            await self._supply(wanted)
            began = time.perf_counter()
        if drafts is not None and any(due):
            drafts.stepped(prompt=not self.pieces)

    async def _read_ahead_together(
        self, drafts: Drafts, quorum: Quorum, due: Sequence[Sequence[Node]], room: int | None
    ) -> None:
        """If a draft pays, who is behind is waited for first: all read it together."""
        behind = quorum.lagging
        if any(self.members.places[member] is None for member in behind):
            return  # nobody knows how long a prompt takes
        if behind:
            here = [() if member in behind else nodes for member, nodes in enumerate(due)]
            late = 2 * max(
                self.members.expected(member, 1) for member in behind
            )  # a pass under way, and one over what was missed
            if not self._plans(drafts, here, room, late):
                return
            began = time.perf_counter()
            try:
                await quorum.level()
            finally:
                seconds = time.perf_counter() - began
                self.waited += seconds
                drafts.waited(seconds)
        await self._read_ahead(drafts, room)

    def _moved(self, member: int) -> None:
        if self._drafts is not None:
            self._drafts.stands(member, len(self._said))

    async def _supply(self, wanted: Sequence[Lookup]) -> None:
        """Have the fuser's wishes looked up."""
        values = await self._each([(lookup.member, self.members.look_up(lookup)) for lookup in wanted])
        for lookup, logprobs in zip(wanted, values, strict=True):
            if logprobs is not None and self.members.sessions[lookup.member] is not None:
                self.fuser.supply(lookup, logprobs)

    def commit(self) -> Commit:
        """The next piece. Where certificates fail often, the members list more from now on, those that can."""
        said = self.fuser.commit()
        self.pieces += 1
        if self._drafts is not None:
            self._said += said.text
        if self.pieces % WATCHED == 0 and self.fuser.certifies:
            meters = self.fuser.meters
            certain, self._certified = meters.certified - self._certified, meters.certified
            if self._quorum is not None:
                _, certain = self._quorum.fuser.certain(WATCHED)
            if not meters.sampled and certain < WATCHED * (1 - UNCERTAIN):
                self._widen()
        return said

    def _may_widen(self, quorum: Quorum) -> bool:
        """Whether lists may have to become longer behind the next piece: that must be at the same place for everybody."""
        if (self.pieces + 1) % WATCHED or 2 ** (self.widened + 1) > WIDEST:
            return False
        surely, _ = quorum.fuser.certain(WATCHED - 1)
        return surely < WATCHED * (1 - UNCERTAIN)

    def _widen(self) -> None:
        times = 2 ** (self.widened + 1)
        if times > WIDEST:
            return
        able = [session for session in self.members.sessions if isinstance(session, WideningSession)]
        longer = [session.widen(self._options.top_k * times) for session in able]
        self.widened += any(longer)

    @property
    def drafts_report(self) -> DraftReport | None:
        """When the stage is over. None: the group could not read ahead, or was not to."""
        return None if self._drafts is None else self._drafts.report()

    @property
    def quorum_report(self) -> QuorumReport | None:
        """When the stage is over. None: the group had to wait for everybody."""
        return None if self._quorum is None else self._quorum.report()

    async def finish(self, *, ended: bool) -> None:
        """The last piece is said: everybody says what it missed. ended: it was the end. Raises BackendError."""
        if self._quorum is None:
            return
        self._ended = ended
        await self._quorum.level()

    async def settle_down(self) -> None:
        """The last piece is said, by everybody: no session holds more than was said."""
        for session, ahead in zip(self.members.sessions, self.members.ahead, strict=True):
            if session is not None and ahead is not None:
                with suppress(BackendError):  # the answer is whole
                    await ahead.settle_down()

    def written(self) -> list[int]:
        """Tokens that each member has said: also those of the last piece, which nobody needed to read any more."""
        if self._full is not None:
            return [self.members.depth(member) if stood is None else stood for member, stood in enumerate(self._full)]
        if self._ended:  # in lock-step all would stand where they were asked for it
            last = [
                nodes[-1] if nodes else place
                for place, nodes in zip(self.members.places, self.fuser.due(), strict=True)
            ]
            return [0 if node is None else node.depth for node in last]
        return [self.members.depth(member) for member in range(len(self.members.places))]

    async def leave(self, member: int, error: BackendError) -> None:
        """Go on without this member. Raises the error if it is the last one, or if the group is not to go on without any."""
        alone = all(session is None for other, session in enumerate(self.members.sessions) if other != member)
        if self._options.on_member_failure == "fail" or alone:
            raise error
        session, self.members.sessions[member] = self.members.sessions[member], None
        said = self.pieces
        if self._quorum is not None:  # it has left where it stands
            said -= self._ended + self._quorum.fuser.behind(member)
            self._quorum.left(member)
        if self._drafts is not None:
            self._drafts.left(member)
        self.fuser.drop(member)
        self.dropped.append(dropped(error, self.branches[member], said))
        await self._on_drop(self.dropped[-1])
        if session is not None:
            await close(session)

    async def _round(self, calls: Sequence[tuple[int, Awaitable[T]]], seconds: Sequence[float]) -> list[T | None]:
        """As `_each`. Whoever leads runs ahead until the others are done, which is expected to take them so long each."""
        leader = None if self._drafts is None or not calls else self._drafts.leader
        if leader is None or not leader.chosen(self.members.live):
            return await self._each(calls)
        first = leader.member
        made: list[tuple[int, Awaitable[T | None]]] = [
            (member, self._lead(first, call) if member == first else leader.beside(call, expected))
            for (member, call), expected in zip(calls, seconds, strict=True)
        ]
        if first not in [member for member, _ in calls]:
            made.append((first, self._lead(first, None)))
        return (await self._each(made))[: len(calls)]

    async def _lead(self, member: int, own: Awaitable[T] | None) -> T | None:
        """What a leader does in a round: its own call, if there is one, then it runs ahead."""
        assert self._drafts is not None
        found = None if own is None else await own
        await anyio.lowlevel.checkpoint()  # the others' calls begin
        began = time.perf_counter()
        passes = await self._drafts.run_on(partial(self.members.limit, member))
        self.members.passes += passes
        if passes:
            self.members.seconds[member] += time.perf_counter() - began
        return found

    async def _each(self, calls: Sequence[tuple[int, Awaitable[T]]]) -> list[T | None]:
        """Results of the members' calls, made side by side; None for a member that had to be dropped."""
        if not calls:
            return []
        began = time.perf_counter()
        try:
            return await self._all(calls)
        finally:
            self.waited += time.perf_counter() - began

    async def _all(self, calls: Sequence[tuple[int, Awaitable[T]]]) -> list[T | None]:
        if self._options.on_member_failure == "fail":
            return list(await together([call for _, call in calls]))
        values, failed = await contained(calls)
        for member in sorted(failed):
            await self.leave(member, failed[member])
        return values

    async def _read_ahead(self, drafts: Drafts, room: int | None) -> None:
        """Have the members score what may come next, if that seems worth it."""
        due = self.fuser.due()
        plans = self._plans(drafts, due, room)
        if not plans:
            return
        earlier = [(plan.member, nodes) for plan in plans if (nodes := due[plan.member][:-1])]
        await self._each([(member, self.members.visit(member, nodes)) for member, nodes in earlier])
        plans = [plan for plan in plans if self.members.sessions[plan.member] is not None]
        if not plans:  # all who would have read have left
            return
        began = time.perf_counter()
        calls = [(plan.member, self.members.score(plan)) for plan in plans]
        rows = await self._round(calls, [self.members.expected(plan.member, 1 + len(plan.draft)) for plan in plans])
        drafts.scored(plans, rows, time.perf_counter() - began)

    def _plans(self, drafts: Drafts, due: Sequence[Sequence[Node]], room: int | None, late: float = 0.0) -> list[Plan]:
        return drafts.plan(due, self.members.places, self.members.live, bytes(self._said), room, late)

    async def read_said(self, member: int, nodes: Sequence[Node], pieces: Sequence[int]) -> None:
        """See `strategies.engine.quorum.Steps`. Only where scored drafts are as good as single steps."""
        ahead, place = self.members.ahead[member], self.members.places[member]
        if ahead is None or ahead.noise != 0.0 or ahead.full or place is None:
            return
        assert self._quorum is not None
        drop, append = route(place, nodes[-1])
        draft = self._quorum.fuser.tokens(member, pieces)
        if draft and append and not ahead.knows(append, drop):
            await self.members.visit(member, nodes[:-1])
            await self.members.score(Plan(member, nodes[-1], draft, guessed=False))

    def _wants(self) -> Sequence[Lookup]:
        try:
            return self.fuser.wants()
        except NothingToSay as error:
            message = f"The models {', '.join(self.members.names)} gave no text a probability, only control tokens."
            raise BackendError(self.members.names[0], message) from error


def dropped(error: BackendError, branch: int, piece: int) -> Dropped:
    """How a report says that a branch was dropped for this error."""
    return Dropped(branch, error.model, piece, error.message, isinstance(error, BackendTimeout))
