"""Sessions that know when they will be full."""

from __future__ import annotations

import pytest
from contract_cases import Case, Knobs

from backends.errors import ContextTooLong
from backends.protocol import RoomySession

pytestmark = pytest.mark.anyio

CONTEXT = 256


async def test_a_session_can_read_what_it_says_and_no_more(case: Case) -> None:
    """Up to one or two ids: some servers want room for the token that they write."""
    async with case.run("a", Knobs(context=CONTEXT)) as running:
        async with running.backend.open(running.prompt, k=4) as session:
            if not isinstance(session, RoomySession) or session.context is None:
                pytest.skip("its server does not say")
            room = session.context - session.prompt_tokens
            await session.step()
            await session.step([70] * (room - 2))
            with pytest.raises(ContextTooLong):
                await session.step([70] * 3)
