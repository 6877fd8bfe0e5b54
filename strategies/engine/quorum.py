"""A group that does not wait for members that can't change the next piece. The same text, sooner.

Model. Every member follows the text in a task of its own: it takes its session where the fuser wants it, and, where the others have said
pieces without it, says these too, one by one, exactly as it would have done with them (`strategies.fusion.quorum`). The group goes on
as soon as everybody has come, or the fuser is sure without those who have not.

Invariants. A session is used by one task at a time: its member's own, or, once that has come, the group's. No step is called off because
the group went on, only, as in lock-step, where the text ends before it for want of room. A member is asked for the same distributions
in the same order as in lock-step, and its lists become longer at the same piece. Nobody falls more than `LAG` pieces behind, nor behind
a context that may end before the text does. When the text is over, everybody says all of it before the stage tells what it took. What
fails or is late while it is behind is noticed when the group next waits, or ends; it is then as if it had failed at the first piece
that it did not say.

Catching up takes one pass for all that was missed where a session's scored drafts equal its single steps to the last bit (`draft_noise`
0); elsewhere as many passes as the member would have needed anyway.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from backends.errors import BackendError
from backends.protocol import RoomySession, Session
from strategies.engine.events import QuorumReport
from strategies.engine.members import Members
from strategies.fusion import Chooser, FuserFactory, Guide, LinearPool, Node, Tell
from strategies.fusion.quorum import QuorumPool

LAG = 16
"""Pieces that a member may be behind."""
SPARE = 256
"""Tokens that a member's context must have left, beyond what it may need for the pieces that it is behind: longer than any token."""
GRACE, LEAST = 0.1, 0.0005
"""Part of the time that the others took, and seconds at least, that a member which was with them so far is waited for: those that step
at the same pace, perhaps in one pass of one engine, are to stay together."""


def may_be_early(
    make: FuserFactory, weights: Sequence[float], chooser: Chooser, guide: Guide | None, tell: Tell | None
) -> bool:
    """Whether some pieces of such a group could be certain without one of its members."""
    greedy = chooser.certain and chooser.shaping is None and guide is None and tell is None
    return greedy and make is LinearPool and len(weights) > 1 and min(weights) < 0.5


class Steps(Protocol):
    """What a `Quorum` has its group do. Raise BackendError."""

    async def read_said(self, member: int, nodes: Sequence[Node], pieces: Sequence[int]) -> None:
        """Before `Members.visit`: have a member read, in one pass, the last of these nodes and what was said behind it, if it can."""
        ...

    async def leave(self, member: int, error: BackendError) -> None:
        """Go on without a member, or raise the error."""
        ...


class Quorum:
    """See the module. Members are numbered as the group numbers them.

    tasks: in which members follow; they end with it. sessions: as they were opened; one whose context is not known is not left behind.
    """

    __slots__ = ("_arrived", "_failed", "_gone", "_level", "_rooms", "_running", "_tasks", "fuser", "members", "steps")

    members: Members
    steps: Steps
    """Both set by the group."""

    def __init__(self, fuser: QuorumPool, tasks: TaskGroup, sessions: Sequence[Session | BackendError]) -> None:
        self.fuser = fuser
        self._tasks = tasks
        self._rooms = [_room(session) for session in sessions]
        self._running: dict[int, anyio.CancelScope] = {}
        self._failed: dict[int, Exception] = {}
        self._gone = {number for number, session in enumerate(sessions) if isinstance(session, BackendError)}
        self._arrived = anyio.Event()
        self._level = True  # nobody goes beyond what was said: it may have been the last

    @property
    def lagging(self) -> frozenset[int]:
        """Members that follow behind the others now."""
        return frozenset(self._running)

    async def gather(self, *, everybody: bool) -> None:
        """Until the fuser can be asked what the next piece needs (`wants`): everybody has come, or it is sure without those who have not.

        everybody: wait for all. Raises BackendError, as a group does.
        """
        self._level = False
        try:
            await self._gather(everybody=everybody)
        finally:
            self._level = True

    async def _gather(self, *, everybody: bool) -> None:
        began = time.perf_counter()
        until: float | None = None
        while True:
            await self._let_go()
            self._start()
            missing = self.fuser.missing()
            if not missing:
                self.fuser.sure()
                return
            if everybody or not all(map(self._may_lag, missing)) or not self.fuser.sure():
                await self._arrival()
            elif all(map(self.fuser.behind, missing)):
                return
            else:
                now = time.perf_counter()
                until = until or now + max(LEAST, GRACE * (now - began))
                if now >= until:
                    return
                with anyio.move_on_after(until - now):
                    await self._arrival()

    async def level(self) -> None:
        """Until all have said what was said, and stand where the next piece begins. Raises BackendError, as a group does.

        Who has said it all was on its way to a piece that is not going to be said, because somebody had no room for it: that step is called
        off, as in lock-step, and whether it failed is of no interest.
        """
        behind = self.fuser.behind
        while True:
            for member, scope in self._running.items():
                if not behind(member):
                    scope.cancel()
            for member, error in list(self._failed.items()):
                if not behind(member) and isinstance(error, BackendError):
                    del self._failed[member]
            await self._let_go()
            self._start()
            if not self._running:
                return
            await self._arrival()

    def report(self) -> QuorumReport:
        """Of the whole stage, when it is over."""
        return QuorumReport(pieces=self.fuser.early, lag=self.fuser.lag)

    async def _let_go(self) -> None:
        """Of those who failed. What is no backend's error is raised."""
        while self._failed:
            member = min(self._failed)
            error = self._failed.pop(member)
            self._gone.add(member)
            if not isinstance(error, BackendError):
                raise error
            await self.steps.leave(member, error)

    def left(self, member: int) -> None:
        """The group goes on without this member."""
        self._gone.add(member)

    def _may_lag(self, member: int) -> bool:
        """Whether one more piece may be said without it."""
        room = self._rooms[member]
        if room is None or self.fuser.behind(member) >= LAG:
            return False
        return room - self.members.depth(member) - self.fuser.unread_bytes(member) >= SPARE

    def _start(self) -> None:
        """Have everybody follow who is late."""
        due = self.fuser.due()
        for member, nodes in enumerate(due):
            idle = member not in self._running and member not in self._gone
            if idle and (self.fuser.behind(member) or (nodes and not self._level)):
                self._running[member] = anyio.CancelScope()
                self._tasks.start_soon(self._follow, member)

    async def _follow(self, member: int) -> None:
        try:
            with self._running[member]:
                await self._keep_up(member)
        except Exception as error:  # noqa: BLE001 - the group raises it, or goes on without the member
            self._failed[member] = error
        finally:
            del self._running[member]
            self._arrived.set()

    async def _keep_up(self, member: int) -> None:
        """Say what the others have said, up to the distribution that the next piece needs."""
        fuser, members, steps = self.fuser, self.members, self.steps
        while True:
            behind = fuser.behind(member)
            if nodes := fuser.due()[member]:
                if self._level and not behind:
                    return
                if behind and nodes[-1].parent is not None:
                    await steps.read_said(member, nodes, fuser.unread(member))
                await members.visit(member, fuser.due()[member])
            if not fuser.behind(member):
                return
            if (lookup := fuser.owed(member)) and (values := await members.look_up(lookup)) is not None:
                fuser.repay(lookup, values)
            fuser.replay(member)

    async def _arrival(self) -> None:
        """Until the next member has come, or failed."""
        assert self._running
        self._arrived = anyio.Event()
        await self._arrived.wait()


def _room(session: Session | BackendError) -> int | None:
    """Tokens that fit behind a session's prompt; None: not known."""
    if isinstance(session, BackendError) or not isinstance(session, RoomySession) or session.context is None:
        return None
    return session.context - session.prompt_tokens


@asynccontextmanager
async def following() -> AsyncIterator[TaskGroup]:
    """Tasks that end with the block. What the block raises comes out as it is."""
    stopped: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it; raised again below
            stopped = error
        tasks.cancel_scope.cancel()
    if stopped is not None:
        raise stopped
