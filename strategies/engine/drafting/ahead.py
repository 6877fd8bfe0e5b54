"""A session that may have read further than its group has said."""

from __future__ import annotations

import time
from collections.abc import Sequence

from backends.errors import BackendError, BackendOverloaded, CapabilityMissing, ContextTooLong
from backends.passtimes import PassTimes
from backends.protocol import DraftingSession, RoomySession, Session, WideningSession
from backends.types import LogProbs, SomeIds, TopK

NEAR = 8
"""Ids behind a draft's end from which a group may still come back to it: another reading of its last pieces."""
KEPT = 64
"""Ids that a group has followed a line, after which all but the last `NEAR` of them are let go: a leader's line has no end."""
SPARE = 2
"""Tokens that may be missing from a context (`RoomySession`)."""
NEGLIGIBLE = 0.001
"""Nats that drafts may be off and count as exact all the same: what an engine that computes in single precision differs by from itself,
depending on who else is asking, is a tenth of it."""


def noise_of(session: Session) -> float | None:
    """Nats by which its scored drafts may be off: 0.0 for those that are exact, or negligibly far from it; None: it is not to draft."""
    noise = session.draft_noise if isinstance(session, DraftingSession) else None
    return 0.0 if noise is not None and noise <= NEGLIGIBLE else noise


class Ahead:
    """A `backends.protocol.Session` that answers from what it has scored wherever it can, and asks the real one only where it can't.

    To its group it stands where the group took it; the real session may stand further on, behind a draft. Without `read_ahead` it makes
    just the calls that are made of it.

    noise: of the real session's drafts, as `noise_of` has it. passes: of the real session. served: places given from what was
    kept. settled: passes made again, singly, for a place that a draft had passed. drafted, confirmed: ids read ahead, and those of them
    that the group then said. times: where it is noted how long passes take. full: there is no room for drafts any more, or no time.
    """

    __slots__ = (
        "_base", "_common", "_excess", "_failed", "_forgetful", "_held", "_here", "_latest", "_line", "_most", "_reached", "_rows",
        "_session", "_standing", "confirmed", "drafted", "full", "noise", "passes", "served", "settled", "times",
    )  # fmt: skip

    def __init__(self, session: Session, times: PassTimes) -> None:
        self._session = session
        self.times = times
        self.noise = noise_of(session)
        if isinstance(session, DraftingSession):
            times.singly = session.reads_singly
        self._here: list[int] = []  # appended, as the group sees it
        self._held: list[
            int
        ] = []  # what of the real session's ids is as single steps would have left it, or good enough
        self._excess = 0  # ids that the real session holds behind those
        self._common = 0  # how long the beginning is that both have in common
        self._base = 0  # the rows' first id follows so many
        self._line: list[int] = []  # the ids behind each of which there is a row …
        self._rows: list[TopK] = []  # … or was one: those that may be used
        self._reached = 0  # how far the group has followed the line
        self._standing = False  # the real session stands at the line's end, where it scored it
        self._latest: TopK | None = None  # what the last single step gave
        self._failed: BackendError | None = None
        # Only at a pass' last place can something be looked up without another pass: that is not to be a padded one.
        self._forgetful = False
        context = session.context if isinstance(session, RoomySession) else None
        self._most = (
            None if context is None else context - session.prompt_tokens - SPARE
        )  # ids that it may have appended
        self.full = False
        self.passes = self.served = self.settled = self.drafted = self.confirmed = 0

    @property
    def prompt_tokens(self) -> int:
        return self._session.prompt_tokens

    def widen(self, k: int) -> bool:
        """What was scored before lists too few: it is not used any more."""
        if not isinstance(self._session, WideningSession) or not self._session.widen(k):
            return False
        self._forget()
        if self.noise:
            self._cut(self._common)
        return True

    async def rewind(self, n: int) -> None:
        if not 0 <= n <= len(self._here):
            raise ValueError(f"can't drop {n} of {len(self._here)} appended ids")
        if n:
            del self._here[len(self._here) - n :]
            self._common = min(self._common, len(self._here))
            if len(self._here) < self._base:
                self._forget()

    async def step(self, append: Sequence[int] = ()) -> TopK:
        for id in append:
            if self._common == len(self._here) < len(self._held) and self._held[self._common] == id:
                self._common += 1
            self._here.append(id)
        row = self._row()
        if row is None:
            return await self._pass()
        self.served += 1
        if len(self._here) > self._reached:
            self.confirmed += 1
            self._reached = len(self._here)
            if (far := self._reached - self._base) > KEPT:
                del self._line[: far - NEAR], self._rows[: far - NEAR]
                self._base = self._reached - NEAR
        return row

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        """One by one, as far as they are not known: its group asks for drafts by `read_ahead`."""
        if not len(draft):
            raise ValueError("a draft has at least one id")
        return [await self.step([id]) for id in draft]

    def knows(self, append: Sequence[int], drop: int = 0) -> bool:
        """Whether `rewind(drop)` and then `step(append)` take no pass."""
        return self._row(append, drop) is not None

    def room(self, append: Sequence[int], drop: int = 0) -> int | None:
        """Ids that a draft may have behind `rewind(drop)` and `append`; None: not known."""
        return None if self._most is None else self._most - (len(self._here) - drop + len(append))

    async def read_ahead(
        self, append: Sequence[int], draft: Sequence[int], *, guessed: bool = True
    ) -> list[TopK] | None:
        """Score `append`, which the group is about to say, and `draft`, which it may say behind it, in one pass.

        guessed: count the draft as one; not where the group has said it already. The distributions behind each of these ids; None where
        there is no room for so many. Where a longer pass takes less, the last id is read more than once. Raises as `Session.score`.
        """
        await self._back()
        missing = self._here[self._common :]
        ids = [*missing, *append, *draft]
        wanted, room = len(ids), self.room(append)
        more = 0 if self._forgetful else self.times.padded(wanted) - wanted
        if room is None or len(draft) + more <= room:
            ids += ids[-1:] * more
        began = time.perf_counter()
        try:
            tops = await self._session.score(ids)
        except (ContextTooLong, BackendOverloaded):
            self.full = True
            return None
        self.times.took(len(ids), time.perf_counter() - began)
        self.passes += 1
        self.drafted += len(draft) if guessed else 0
        self._held.extend(ids)
        self._common = len(self._here)
        self._base, self._line, self._rows = len(self._here), ids[len(missing) : wanted], tops[len(missing) : wanted]
        self._standing = True
        self._reached = self._base + len(append) + (0 if guessed else len(draft))
        return self._rows

    @property
    def beyond(self) -> list[int]:
        """Ids read behind where the group stands, as far as it is still on their line."""
        return self._line[len(self._here) - self._base : len(self._rows)] if self._on_the_line else []

    @property
    def tip(self) -> TopK | None:
        """What comes behind `beyond`; None: that was not asked yet."""
        if self._line_goes_on:
            return self._rows[-1]
        read = self._latest is not None and len(self._held) == len(self._here) == self._common
        return self._latest if read and not self._excess and not self._standing else None

    @property
    def _line_goes_on(self) -> bool:
        """The group is on the line, and all of its rows are there."""
        return self._on_the_line and len(self._rows) == len(self._line)

    @property
    def _on_the_line(self) -> bool:
        at = len(self._here) - self._base
        return bool(self._rows) and at >= 0 and self._here[self._base :] == self._line[:at]

    async def run_on(self, text: Sequence[bytes]) -> bool:
        """Read one id more than was read so far: the likeliest. Only for sessions without noise.

        text: id → its bytes; what says nothing is not read. False: nothing was done. Raises as `Session.step`, but not for want of room.
        """
        on, tip = self._line_goes_on, self.tip
        there = self._base + len(self._rows) if on else len(self._here)
        if tip is None or len(self._held) != there or self._excess or self._common < len(self._here):
            return False
        id = int(tip.ids[0])
        if not text[id] or (self._most is not None and there >= self._most):
            return False
        began = time.perf_counter()
        try:
            top = await self._session.step([id])
        except (ContextTooLong, BackendOverloaded):
            self.full = True
            return False
        self.times.took(1, time.perf_counter() - began)
        self.passes += 1
        self.drafted += 1
        if not on:
            self._base, self._line, self._rows, self._reached = there, [], [], there
        self._held.append(id)
        self._line.append(id)
        self._rows.append(top)
        self._standing = False
        return True

    def fail(self, error: BackendError) -> None:
        """The real session failed where nobody needed it yet: that is raised once somebody does."""
        self._failed = error

    def trust(self, rows: int) -> None:
        """Use only so many of the distributions just scored: at the places behind, single steps are to be made."""
        del self._rows[rows:]
        self._cut(self._base + rows)

    async def lookup(self, ids: SomeIds) -> LogProbs:
        self._usable()
        back = len(self._held) + self._excess - len(self._here)
        if self._common < len(self._here) or back < 0:
            await self._again()
        elif back:
            if isinstance(self._session, DraftingSession) and (self._standing or back <= self._session.kept_steps):
                try:
                    return await self._session.recall(back, ids)
                except CapabilityMissing:
                    self._forgetful = self._forgetful or self._standing
            await self._again()
        return await self._session.lookup(ids)

    async def _again(self) -> None:
        """Have the real session stand where the group stands."""
        self.settled += 1
        await self._pass(again=True)

    async def settle_down(self) -> None:
        """The group is done: take the real session back to where it stands."""
        await self._back()

    async def close(self) -> None:
        await self._session.close()

    def _row(self, append: Sequence[int] = (), drop: int = 0) -> TopK | None:
        """What was scored where the group stands, or would stand behind `append` and without `drop` ids."""
        end = len(self._here) - drop
        if not self._rows or end < self._base:
            return None
        passed = [*self._here[self._base : end], *append]
        if not 1 <= len(passed) <= len(self._rows) or passed != self._line[: len(passed)]:
            return None
        return self._rows[len(passed) - 1]

    def _cut(self, clean: int) -> None:
        """What the real session holds behind so many ids is to be read again."""
        if clean < len(self._held):
            self._excess += len(self._held) - clean
            del self._held[clean:]
            self._common = min(self._common, clean)

    async def _pass(self, *, again: bool = False) -> TopK:
        """Take the real session to where the group stands, in a step as if nothing had been read ahead.

        Where it has been there before, what it said there is not to be used if that was in a draft, or with `again`.
        """
        if (self._standing or again) and 0 < self._common == len(self._here):
            self._common -= 1  # the last id is read again
        await self._back()
        missing = self._here[self._common :]
        began = time.perf_counter()
        self._latest = top = await self._session.step(missing)
        if len(missing) == 1 and self.passes:  # the first one reads the prompt
            self.times.took(1, time.perf_counter() - began)
        self.passes += 1
        self._held.extend(missing)
        self._common = len(self._here)
        self._standing = False
        if self.noise or len(self._here) > self._base + len(self._rows) + NEAR:
            self._forget()  # where there is noise, the rows went on from something else than what is held now
        return top

    async def _back(self) -> None:
        """Drop what the real session holds beyond what it has in common with the group."""
        self._usable()
        drop = len(self._held) - self._common + self._excess
        if drop:
            await self._session.rewind(drop)
            del self._held[self._common :]
            self.settled += self._excess > 0
            self._excess = 0
            self._standing = False

    def _usable(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _forget(self) -> None:
        self._line, self._rows = [], []
