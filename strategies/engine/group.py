"""The sessions of a group: each is taken where the fuser wants it, and one that fails is dropped or ends the run."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import TypeVar

import anyio
import anyio.lowlevel

from backends.errors import BackendError, BackendTimeout, CapabilityMissing
from backends.protocol import Session, WideningSession
from backends.types import LogProbs, TopK
from strategies.engine.drafting import Ahead, Drafts
from strategies.engine.drafting.drafts import Plan
from strategies.engine.events import DraftReport, Dropped
from strategies.engine.options import FIRST_STEP, Options
from strategies.fusion import Commit, Fuser, Lookup, Node, NothingToSay, root, route

T = TypeVar("T")

WATCHED = 16
"""Pieces after which it is looked at how many of them were certain from the lists alone."""
UNCERTAIN = 0.5
"""If more than this part of them were not, the lists are made twice as long …"""
WIDEST = 8
"""… up to so many times what was asked for."""

MOST_AHEAD = 16
"""Steps that a leader may take in the time of one call of the others, for the deadline that it has."""

CLOSE_SECONDS = 1.0
"""How long a dropped member's session may take to close; what it holds is freed at the latest at the end of the stage."""


class Group:
    """A fuser's members and where each of them stands.

    Members are numbered as the fuser numbers them. names, branches: each one's model, and its place in the stage.
    sessions: None for one that is dropped. opened: the same from the start on; an error stands for one that could not be opened.
    pieces: said so far. passes: forward passes of all members. widened: times that lists were made longer. dropped: who left, in order.
    waited: seconds spent waiting for members; seconds: of each member alone, in its forward passes.
    drafts: where the group may read ahead; its sessions are then those of the drafts.
    """

    __slots__ = (
        "_ahead", "_certified", "_drafts", "_names", "_on_drop", "_options", "_said", "branches", "dropped", "fuser", "opened", "passes",
        "pieces", "places", "seconds", "sessions", "waited", "widened",
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
    ) -> None:
        self._drafts = drafts
        self._ahead: Sequence[Ahead | None] = [None] * len(opened) if drafts is None else drafts.sessions
        self._said = bytearray()
        self._names = names
        self._options = options
        self._on_drop = on_drop
        self.branches = branches
        self.fuser = fuser
        self.opened = opened
        self.sessions = [None if isinstance(session, BackendError) else session for session in opened]
        self.places: list[Node | None] = [None] * len(opened)
        self.pieces = 0
        self.passes = 0
        self.widened = 0
        self._certified = 0
        self.waited = 0.0
        self.seconds = [0.0] * len(opened)
        self.dropped: list[Dropped] = []

    async def start(self, dropped: Sequence[Dropped]) -> None:
        """Before the first piece: tell who was dropped already, and drop who could not be opened. Raises BackendError."""
        for one in dropped:
            self.dropped.append(one)
            await self._on_drop(one)
        for member, session in enumerate(self.opened):
            if isinstance(session, BackendError):
                await self.leave(member, session)

    async def advance(self, room: int | None = None) -> None:
        """Everything the fuser needs for its next piece. Raises BackendError: a member's own, or the last one's.

        room: pieces that may still be said, this one included.
        """
        fuser = self.fuser
        while True:
            if self._drafts is not None and any(fuser.due()):
                await self._read_ahead(self._drafts, room)
            due, before = fuser.due(), self.passes
            calls = [(member, self._visit(member, nodes)) for member, nodes in enumerate(due) if nodes]
            await self._round(calls, [len(due[member]) * self._expected(member, 1) for member, _ in calls])
            if self._drafts is not None and any(due):
                self._drafts.stepped(self.passes - before)
            while wanted := self._wants():
                values = await self._each([(lookup.member, self._look_up(lookup)) for lookup in wanted])
                for lookup, logprobs in zip(wanted, values, strict=True):
                    if logprobs is not None and self.sessions[lookup.member] is not None:
                        fuser.supply(lookup, logprobs)
            if not any(fuser.due()):
                return

    def commit(self) -> Commit:
        """The next piece. Where certificates fail often, the members list more from now on, those that can."""
        said = self.fuser.commit()
        self.pieces += 1
        if self._drafts is not None:
            self._said += said.text
        if self.pieces % WATCHED == 0 and self.fuser.certifies:
            meters = self.fuser.meters
            certain, self._certified = meters.certified - self._certified, meters.certified
            if not meters.sampled and certain < WATCHED * (1 - UNCERTAIN):
                self._widen()
        return said

    def _widen(self) -> None:
        times = 2 ** (self.widened + 1)
        if times > WIDEST:
            return
        able = [session for session in self.sessions if isinstance(session, WideningSession)]
        longer = [session.widen(self._options.top_k * times) for session in able]
        self.widened += any(longer)

    @property
    def drafts_report(self) -> DraftReport | None:
        """When the stage is over. None: the group could not read ahead, or was not to."""
        return None if self._drafts is None else self._drafts.report()

    async def settle_down(self) -> None:
        """The last piece is said: no session holds more than was said."""
        for session, ahead in zip(self.sessions, self._ahead, strict=True):
            if session is not None and ahead is not None:
                with suppress(BackendError):  # the answer is whole
                    await ahead.settle_down()

    def written(self) -> list[int]:
        """Tokens that each member has said: also those of the last piece, which nobody needed to read any more."""
        due = self.fuser.due()
        return [
            max((node.depth for node in (place, *nodes) if node is not None), default=0)
            for place, nodes in zip(self.places, due, strict=True)
        ]

    async def leave(self, member: int, error: BackendError) -> None:
        """Go on without this member. Raises the error if it is the last one, or if the group is not to go on without any."""
        alone = all(session is None for other, session in enumerate(self.sessions) if other != member)
        if self._options.on_member_failure == "fail" or alone:
            raise error
        session, self.sessions[member] = self.sessions[member], None
        self.fuser.drop(member)
        self.dropped.append(dropped(error, self.branches[member], self.pieces))
        await self._on_drop(self.dropped[-1])
        if session is not None:
            await close(session)

    async def _round(self, calls: Sequence[tuple[int, Awaitable[T]]], seconds: Sequence[float]) -> list[T | None]:
        """As `_each`. Whoever leads runs ahead until the others are done, which is expected to take them so long each."""
        leader = None if self._drafts is None or not calls else self._drafts.leader
        if leader is None or not leader.chosen([m for m, session in enumerate(self.sessions) if session is not None]):
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
        with self._limit(member, first=False, steps=MOST_AHEAD):
            passes = await self._drafts.run_on()
        self.passes += passes
        if passes:
            self.seconds[member] += time.perf_counter() - began
        return found

    def _expected(self, member: int, tokens: int) -> float:
        """Seconds of a member's pass, as far as that is known."""
        ahead = self._ahead[member]
        return 0.0 if ahead is None else ahead.times.expected(tokens) or 0.0

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
        failed: dict[int, BackendError] = {}

        async def contained(member: int, call: Awaitable[T]) -> T | None:
            try:
                return await call
            except BackendError as error:
                failed[member] = error
                return None

        values = await together([contained(member, call) for member, call in calls])
        for member in sorted(failed):
            await self.leave(member, failed[member])
        return values

    async def _read_ahead(self, drafts: Drafts, room: int | None) -> None:
        """Have the members score what may come next, if that seems worth it."""
        live = [member for member, session in enumerate(self.sessions) if session is not None]
        due = self.fuser.due()
        plans = drafts.plan(due, self.places, live, bytes(self._said), room)
        if not plans:
            return
        earlier = [(plan.member, nodes) for plan in plans if (nodes := due[plan.member][:-1])]
        await self._each([(member, self._visit(member, nodes)) for member, nodes in earlier])
        plans = [plan for plan in plans if self.sessions[plan.member] is not None]
        began = time.perf_counter()
        calls = [(plan.member, self._score(plan)) for plan in plans]
        rows = await self._round(calls, [self._expected(plan.member, 1 + len(plan.draft)) for plan in plans])
        drafts.scored(plans, rows, time.perf_counter() - began)

    async def _score(self, plan: Plan) -> list[TopK] | None:
        session, place = self._ahead[plan.member], self.places[plan.member]
        assert session is not None
        assert place is not None
        drop, append = route(place, plan.node)
        if drop:
            await session.rewind(drop)
            while drop:
                assert place.parent is not None
                place, drop = place.parent, drop - 1
            self.places[plan.member] = place
        began = time.perf_counter()
        with self._limit(plan.member, first=False, steps=1 + len(plan.draft)):
            rows = await session.read_ahead(append, plan.draft)
        self.seconds[plan.member] += time.perf_counter() - began
        self.passes += rows is not None
        return rows

    async def _visit(self, member: int, nodes: Sequence[Node]) -> None:
        session, ahead = self.sessions[member], self._ahead[member]
        assert session is not None
        for node in nodes:
            here = self.places[member]
            drop, append = route(root(node) if here is None else here, node)
            if drop:
                await session.rewind(drop)
            began = time.perf_counter()
            known = ahead is not None and ahead.knows(append)  # it has been rewound by now
            with self._limit(member, first=here is None):
                top = await session.step(append)
            self.seconds[member] += time.perf_counter() - began
            self.places[member] = node
            if self._drafts is not None:
                self._drafts.stands(member, len(self._said))
            self.passes += not known
            self.fuser.feed(member, node, top)

    def _limit(self, member: int, *, first: bool, steps: int = 1) -> Deadline | nullcontext[None]:
        """steps: how many a call is in one."""
        seconds = self._options.member_seconds
        if seconds is None:
            return nullcontext()
        return Deadline(self._names[member], seconds * (FIRST_STEP if first else steps))

    def _wants(self) -> Sequence[Lookup]:
        try:
            return self.fuser.wants()
        except NothingToSay as error:
            message = f"The models {', '.join(self._names)} gave no text a probability, only control tokens."
            raise BackendError(self._names[0], message) from error

    async def _look_up(self, lookup: Lookup) -> LogProbs | None:
        """None where the server can't: the step is then chosen from the lists alone, and metered as uncertified."""
        session, ahead = self.sessions[lookup.member], self._ahead[lookup.member]
        assert session is not None
        before = 0 if ahead is None else ahead.passes
        try:
            with self._limit(lookup.member, first=False):
                return await session.lookup(lookup.ids)
        except CapabilityMissing:
            return None
        finally:
            if ahead is not None:
                self.passes += ahead.passes - before


class Deadline:
    """A block that must be left within some seconds. Raises `Late`."""

    __slots__ = ("_name", "_scope", "_seconds")

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds

    def __enter__(self) -> None:
        self._scope = anyio.move_on_after(self._seconds)
        self._scope.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool | None:
        swallowed = self._scope.__exit__(kind, error, trace)  # type: ignore[arg-type]
        if self._scope.cancelled_caught:
            raise Late(self._name, f"Model {self._name!r} took longer than {self._seconds:g} seconds for a step.")
        return swallowed


class Late(BackendTimeout):
    """A member took longer for a step than its group may wait."""


def dropped(error: BackendError, branch: int, piece: int) -> Dropped:
    """How a report says that a branch was dropped for this error."""
    return Dropped(branch, error.model, piece, error.message, isinstance(error, BackendTimeout))


async def close(session: Session) -> None:
    """Close a session that may be broken, without waiting for long."""
    with (
        anyio.move_on_after(CLOSE_SECONDS),
        suppress(BackendError),
    ):  # it was dropped for an error, and that one is reported
        await session.close()


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Results of all calls, made side by side; if one fails, the others are cancelled and its own error is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    results: dict[int, T] = {}

    async def keep(index: int, call: Awaitable[T]) -> None:
        results[index] = await call

    try:
        async with anyio.create_task_group() as tasks:
            for index, call in enumerate(calls):
                tasks.start_soon(keep, index, call)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    return [results[index] for index in range(len(calls))]


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a tree of exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
