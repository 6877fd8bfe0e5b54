"""The sessions of a group's members: where each of them stands, and the calls that take it further."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from backends.errors import BackendError, CapabilityMissing
from backends.protocol import Session
from backends.types import LogProbs, TopK
from strategies.engine.drafting import Ahead
from strategies.engine.drafting.drafts import Plan
from strategies.engine.options import FIRST_STEP
from strategies.engine.waiting import Deadline
from strategies.fusion import Fuser, Lookup, Node, root, route


class Members:
    """Members are numbered as the fuser numbers them, which is fed by `visit`.

    names: each one's model. opened: as they were; an error stands for one that could not be opened. sessions: None for one that left.
    places: None before the prompt is read. passes: forward passes of all members; seconds: of each member alone, in its forward passes.
    limit_seconds: a member that takes longer for a step is late; None: no limit. moved: told of every member that was taken somewhere.
    """

    __slots__ = (
        "_limit_seconds",
        "_moved",
        "ahead",
        "fuser",
        "names",
        "opened",
        "passes",
        "places",
        "seconds",
        "sessions",
    )

    def __init__(
        self,
        names: Sequence[str],
        opened: Sequence[Session | BackendError],
        fuser: Fuser,
        limit_seconds: float | None,
        moved: Callable[[int], None],
    ) -> None:
        self.names = names
        self.opened = opened
        self.fuser = fuser
        self.sessions = [None if isinstance(session, BackendError) else session for session in opened]
        self.ahead: Sequence[Ahead | None] = [one if isinstance(one, Ahead) else None for one in opened]
        self.places: list[Node | None] = [None] * len(opened)
        self.passes = 0
        self.seconds = [0.0] * len(opened)
        self._limit_seconds = limit_seconds
        self._moved = moved

    @property
    def live(self) -> list[int]:
        """Those that have not left."""
        return [member for member, session in enumerate(self.sessions) if session is not None]

    def depth(self, member: int) -> int:
        """Ids that the member has said, or is about to be asked about."""
        return deepest(self.places[member], self.fuser.due()[member])

    async def visit(self, member: int, nodes: Sequence[Node]) -> None:
        """Take it to each of these in turn, and feed the fuser. Raises BackendError."""
        session, ahead = self.sessions[member], self.ahead[member]
        assert session is not None
        for node in nodes:
            here = self.places[member]
            drop, append = route(root(node) if here is None else here, node)
            if drop:
                await session.rewind(drop)
            began = time.perf_counter()
            known = ahead is not None and ahead.knows(append)  # it has been rewound by now
            with self.limit(member, FIRST_STEP if here is None else 1.0):
                top = await session.step(append)
            self.seconds[member] += time.perf_counter() - began
            self.places[member] = node
            self._moved(member)
            self.passes += not known
            self.fuser.feed(member, node, top)

    async def score(self, plan: Plan) -> list[TopK] | None:
        """Have it read ahead. None where there is no room. Raises BackendError."""
        session, place = self.ahead[plan.member], self.places[plan.member]
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
        with self.limit(plan.member, tokens=len(append) + len(plan.draft)):
            rows = await session.read_ahead(append, plan.draft, guessed=plan.guessed)
        self.seconds[plan.member] += time.perf_counter() - began
        self.passes += rows is not None
        return rows

    async def look_up(self, lookup: Lookup) -> LogProbs | None:
        """None where the server can't: the step is then chosen from the lists alone, and metered as uncertified. Raises BackendError."""
        session, ahead = self.sessions[lookup.member], self.ahead[lookup.member]
        assert session is not None
        before = 0 if ahead is None else ahead.passes
        try:
            with self.limit(lookup.member):
                return await session.lookup(lookup.ids)
        except CapabilityMissing:
            return None
        finally:
            if ahead is not None:
                self.passes += ahead.passes - before

    def expected(self, member: int, tokens: int) -> float:
        """Seconds of its pass over so many tokens, as far as that is known."""
        ahead = self.ahead[member]
        return 0.0 if ahead is None else ahead.times.expected(tokens) or 0.0

    def limit(self, member: int, times: float = 1.0, tokens: int = 1) -> Deadline | nullcontext[None]:
        """times: how much longer than another step it may take. tokens: that it reads; what more than one take longer is granted."""
        seconds = self._limit_seconds
        if seconds is None:
            return nullcontext()
        if tokens > 1:
            step = self.expected(member, 1)
            # As long as nobody knows what they cost, as so many steps.
            seconds += max(0.0, self.expected(member, tokens) - step) if step else seconds * (tokens - 1)
        return Deadline(self.names[member], seconds * times)


def deepest(place: Node | None, due: Sequence[Node]) -> int:
    """Ids up to the last of these nodes."""
    return max((node.depth for node in (place, *due) if node is not None), default=0)
