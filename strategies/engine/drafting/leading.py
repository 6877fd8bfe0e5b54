"""Guesses what comes next by letting the fastest member run ahead while the others are at their pass.

A group waits for its slowest member; one that is much faster has time to go on by itself, step by step, with what it would say. Where
the group says that too, the others read it in one pass. The steps are single ones, so what they gave is used as it is. They cost time that
would be spent waiting, as long as the members do not share what they compute on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from backends.errors import BackendError
from backends.types import Vocabulary
from strategies.engine.drafting.ahead import Ahead

T = TypeVar("T")

FASTER = 1.5
"""How many times as long a step of the slowest member must take for another to run ahead."""
ALONE = 1
"""Sessions that a model may have open for one of them to run ahead: beside others it takes their time."""


class Leader:
    """See the module. sessions, vocabularies: one per member.

    Around the calls of one round: `beside` for those of the others, `run` for the one that leads, behind its own. member: who leads, once
    `chosen` has said that somebody does.
    """

    __slots__ = ("_at", "_busy", "_led", "_sessions", "_until", "_vocabularies", "member")

    def __init__(self, sessions: Sequence[Ahead], vocabularies: Sequence[Vocabulary]) -> None:
        self._sessions = sessions
        self._vocabularies = vocabularies
        self._busy = 0  # calls of the others
        self._until = 0.0  # when the last one of them is expected to be over
        self._at = 0  # bytes that had been said where the leader stands
        self._led = False
        self.member = 0

    def chosen(self, live: Sequence[int]) -> bool:
        """Whether somebody leads in the next round. As long as the member is left it stays the same one."""
        if self._led and self.member in live:
            return True
        known = {member: step for member in live if (step := self._sessions[member].times.step) is not None}
        self._led = False
        if len(known) == len(live) > 1:
            self.member = min(known, key=known.__getitem__)
            self._led = max(known.values()) >= FASTER * known[self.member]
        return self._led

    async def beside(self, call: Awaitable[T], seconds: float) -> T:
        """Another member's call, which is expected to take so long."""
        self._until = max(self._until if self._busy else 0.0, time.perf_counter() + seconds)
        self._busy += 1
        try:
            return await call
        finally:
            self._busy -= 1

    def stands(self, said: int) -> None:
        """The leader's session stands where so many bytes had been said."""
        self._at = said

    async def run(self, most: int, limit: Callable[[], AbstractContextManager[object]]) -> int:
        """Go on while another step will be over before the others are, up to so many ids beyond where the group stands. Returns the steps
        that were made.

        limit: makes the block that each of them is made in. One that fails or is late is the leader's failure only where the group comes
        to need it (`Ahead.fail`): the text may end before.
        """
        session, text = self._sessions[self.member], self._vocabularies[self.member].tokens
        steps = 0
        while self._busy and session.times.sharing <= ALONE and not session.full and len(session.beyond) < most:
            step = session.times.step
            if step is None or time.perf_counter() + step > self._until:
                break
            try:
                with limit():
                    if not await session.run_on(text):
                        break
            except BackendError as error:
                session.fail(error)
                break
            steps += 1
        return steps

    def guess(self, said: bytes, most: int) -> bytes:
        """What the leader has said behind `said`, and what it would say next, as far as the group is still with it."""
        if not self._led:
            return b""
        text, session = self._vocabularies[self.member].tokens, self._sessions[self.member]
        ids = session.beyond
        if (tip := session.tip) is not None:
            ids.append(int(tip.ids[0]))
        ahead = b"".join([text[id] for id in ids])
        since = said[self._at :]
        return ahead[len(since) :][:most] if ahead.startswith(since) else b""
