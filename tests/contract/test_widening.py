"""Sessions that can list more than they were opened for."""

from __future__ import annotations

import pytest
from contract_cases import Case, Knobs

from backends.protocol import WideningSession

pytestmark = pytest.mark.anyio


async def test_a_session_lists_more_from_the_next_step_on(case: Case) -> None:
    """Not less again, and no more than there is; what is listed stays the beginning of the same list."""
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=4) as session:
        if not isinstance(session, WideningSession):
            pytest.skip("its k is fixed")
        first = await session.step()
        assert len(first.ids) == 4
        if not session.widen(7):
            pytest.skip("its k is fixed")
        token = int(first.ids[0])
        wide = await session.step([token])
        assert len(wide.ids) == min(7, case.max_k or 7)
        assert not session.widen(2)
        await session.rewind(1)
        again = await session.step([token])
        assert again.ids.tolist() == wide.ids.tolist()
        async with running.backend.open(running.prompt, k=4) as other:
            await other.step()
            assert (await other.step([token])).ids.tolist() == wide.ids.tolist()[:4]
