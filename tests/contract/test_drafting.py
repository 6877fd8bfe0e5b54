"""Sessions that keep what they found at every place of a draft."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from contract_cases import Case, Knobs

from backends.errors import CapabilityMissing
from backends.protocol import DraftingSession

pytestmark = pytest.mark.anyio

DRAFT = (70, 71, 72)


async def test_what_a_draft_found_can_be_recalled(case: Case) -> None:
    """At every place but the last, which `lookup` is for; the listed values are the same to the last bit."""
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=8) as session:
        if not isinstance(session, DraftingSession) or session.draft_noise is None:
            pytest.skip("it takes no drafts")
        await session.step()
        tops = await session.score(DRAFT)
        try:
            for back in (1, 2):
                top = tops[-1 - back]
                np.testing.assert_array_equal(await session.recall(back, top.ids.tolist()), top.logprobs)
            full = await session.recall(2, range(len(await running.backend.vocabulary())))
        except CapabilityMissing:
            pytest.skip("nothing is kept of a draft")
        assert np.exp(full).sum() == pytest.approx(1, abs=1e-4)
        np.testing.assert_array_equal(await session.lookup(tops[-1].ids.tolist()), tops[-1].logprobs)
        with pytest.raises(RuntimeError, match="draft"):
            await session.recall(0, [1])
        if session.kept_steps:
            gone = partial(pytest.raises, CapabilityMissing)
        else:
            gone = partial(pytest.raises, RuntimeError, match="draft")
            with gone():
                await session.recall(len(DRAFT), [1])
        await session.rewind(1)
        with gone():
            await session.recall(1, [1])
        await session.step([80])
        with gone():
            await session.recall(1, [1])


async def test_what_steps_found_can_be_recalled_over_those_that_are_kept(case: Case) -> None:
    """Exactly what `lookup` would have said there; never what was found before the session was cut back."""
    wanted = list(range(60, 120))
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=8) as session:
        if not isinstance(session, DraftingSession) or not session.kept_steps:
            pytest.skip("it keeps nothing of steps")
        await session.step()
        found = [await session.lookup(wanted)]
        for id in DRAFT:
            await session.step([id])
            found.append(await session.lookup(wanted))
        for back in range(1, session.kept_steps + 1):
            np.testing.assert_array_equal(await session.recall(back, wanted), found[-1 - back])
        with pytest.raises(CapabilityMissing):
            await session.recall(len(found), wanted)
        # Cut back by two and gone another way: behind it stands what is found on that way.
        await session.rewind(2)
        other = []
        for id in (80, 81):
            await session.step([id])
            other.append(await session.lookup(wanted))
        np.testing.assert_array_equal(await session.recall(1, wanted), other[0])
        with pytest.raises(CapabilityMissing):
            await session.recall(2, wanted)
        # A step behind a draft: over it, and into the draft.
        await session.rewind(2)
        await session.step([DRAFT[1]])
        tops = await session.score([DRAFT[2], 90])
        await session.step([91])
        top = tops[0]
        np.testing.assert_array_equal(await session.recall(2, top.ids.tolist()), top.logprobs)
        outside = [id for id in wanted if id not in top.ids.tolist()]
        np.testing.assert_allclose(
            await session.recall(2, outside),
            found[3][[wanted.index(id) for id in outside]],
            atol=max(0.5, case.draft_atol),
        )


async def test_a_session_without_noise_scores_as_it_steps(case: Case) -> None:
    """And steps behind a draft as behind steps: to the last bit. Whoever promises that is drafted for wherever it pays."""
    async with case.run("a", Knobs()) as running:
        async with running.backend.open(running.prompt, k=8) as session:
            if not isinstance(session, DraftingSession) or session.draft_noise != 0.0:
                pytest.skip("it makes no such promise")
            stepped = [await session.step(append) for append in ((), *((id,) for id in (*DRAFT, 80)))]
        async with running.backend.open(running.prompt, k=8) as session:
            drafted = [await session.step(), *await session.score(DRAFT), await session.step([80])]
        for one, other in zip(stepped, drafted, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.logprobs, other.logprobs)
