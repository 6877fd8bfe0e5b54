"""Hedging: a stage that stays silent is asked for a second time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from wrapped import ASK, Ear, TextOnly, made, said

from backends import errors
from backends.types import TextDelta, TextEvent

pytestmark = pytest.mark.anyio


async def test_a_silent_stream_is_asked_twice_and_the_quicker_one_is_heard() -> None:
    bare, ear = TextOnly(after=[30.0, 0.0]), Ear()
    assert await said(made(bare, ear, hedge_after=0.02)) == "answer 1"
    assert bare.entered == bare.left == 2 and bare.cancelled == 1, "the other one is cancelled"
    assert ear.heard == [("hedged",), ("hedge won",)]


async def test_a_quick_stream_is_not_hedged() -> None:
    bare, ear = TextOnly(), Ear()
    assert await said(made(bare, ear, hedge_after=0.5)) == "answer 0"
    assert bare.entered == 1 and not ear.heard


async def test_the_first_may_still_win() -> None:
    bare, ear = TextOnly(after=[0.1, 30.0]), Ear()
    assert await said(made(bare, ear, hedge_after=0.02)) == "answer 0"
    assert bare.left == 2 and ear.heard == [("hedged",)]


async def test_hedging_is_paid_from_the_budget() -> None:
    bare, ear = TextOnly(after=[0.03] * 30), Ear()
    backend = made(bare, ear, hedge_after=0.001, share=0.0, reserve=2.0)
    for _ in range(6):
        await said(backend)
    assert ear.count("hedged") == 2 and bare.entered == 8


async def test_if_both_fail_the_first_error_is_told() -> None:
    first, second = errors.BackendUnavailable("m", "first"), errors.BackendUnavailable("m", "second")

    class Slow(TextOnly):
        async def _events(self, number: int) -> AsyncIterator[TextEvent]:
            await anyio.sleep(0.05)
            raise (first, second)[number]
            yield

    with pytest.raises(errors.BackendUnavailable, match="first"):
        await said(made(Slow(), hedge_after=0.01))


async def test_one_that_fails_leaves_the_other_its_time() -> None:
    class Uneven(TextOnly):
        async def _events(self, number: int) -> AsyncIterator[TextEvent]:
            await anyio.sleep(0.1 if number else 0.05)
            if not number:
                raise errors.BackendUnavailable("m", "The first fails.")
            yield TextDelta("the second answers")

    assert await said(made(Uneven(), hedge_after=0.01)) == "the second answers"


async def test_a_hedged_stream_that_breaks_off_raises_where_it_breaks() -> None:
    texts = []
    with pytest.raises(errors.BackendUnavailable, match="broke off"):
        async with made(TextOnly(broken=True), hedge_after=1.0).stream(ASK) as events:
            async for event in events:
                texts.append(event.text)  # type: ignore[union-attr]
    assert texts == ["answer 0"]


async def test_leaving_a_hedged_block_ends_both() -> None:
    bare = TextOnly(after=[30.0, 30.0])
    with anyio.move_on_after(0.1):
        await said(made(bare, hedge_after=0.01))
    assert bare.entered == bare.left == 2 and bare.cancelled == 2


async def test_a_stream_without_any_event_is_an_error_not_a_hang() -> None:
    class Empty(TextOnly):
        async def _events(self, number: int) -> AsyncIterator[TextEvent]:
            return
            yield

    with pytest.raises(errors.BackendUnavailable, match="without an answer"):
        await said(made(Empty(), hedge_after=1.0))
