"""What every text stream promises, whichever backend writes it."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from contract_cases import Case, Knobs, Running

from backends.errors import BackendError, BackendOverloaded, BackendUnavailable, ContextTooLong
from backends.fake import Fault
from backends.types import Message, Sampling, TextDelta, TextEnd, TextEvent, TextRequest

pytestmark = pytest.mark.anyio


def request(running: Running, **sampling: object) -> TextRequest:
    settings = {"max_tokens": 24, "temperature": 0.0, **sampling}
    return TextRequest(tuple(running.prompt), Sampling(**settings))  # type: ignore[arg-type]


async def read(running: Running, **sampling: object) -> list[TextEvent]:
    async with running.backend.stream(request(running, **sampling)) as events:
        return [event async for event in events]


def text(events: list[TextEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def settles(busy: Callable[[], int]) -> None:
    """Nothing is held any more, at once or a moment after."""
    with anyio.fail_after(30):
        while busy():
            await anyio.sleep(0.005)


async def test_a_stream_is_deltas_and_one_end(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        events = await read(running)
        *deltas, end = events
        assert isinstance(end, TextEnd)
        assert deltas
        assert all(isinstance(delta, TextDelta) and (delta.text or delta.reasoning) for delta in deltas)
        assert end.finish_reason in ("stop", "length")
        assert end.usage.prompt_tokens > 0
        assert end.usage.completion_tokens > 0
        await settles(running.busy)


async def test_the_iterator_stays_ended(case: Case) -> None:
    async with case.run("a", Knobs()) as running, running.backend.stream(request(running)) as events:
        assert [event async for event in events]
        assert [event async for event in events] == []


async def test_max_tokens_cuts_with_length(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        whole, cut = await read(running, max_tokens=20), await read(running, max_tokens=3)
        assert text(whole).startswith(text(cut).removesuffix("\ufffd"))
        assert len(text(cut)) < len(text(whole))
        assert cut[-1] == TextEnd("length", cut[-1].usage)  # type: ignore[union-attr]
        assert cut[-1].usage.completion_tokens == 3  # type: ignore[union-attr]


async def test_a_stop_string_is_never_emitted(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        whole = text(await read(running))
        stop = whole[4:7]  # lies across deltas in most cases
        cut = await read(running, stop=(stop,))
        assert text(cut) == whole[: whole.index(stop)]
        assert cut[-1].finish_reason == "stop"  # type: ignore[union-attr]


async def test_concurrent_streams_do_not_mix(case: Case) -> None:
    async with case.run("a", Knobs(delay=0.001)) as running:
        alone = text(await read(running))
        found: list[str] = []

        async def one() -> None:
            found.append(text(await read(running)))

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
        assert found == [alone, alone]
        await settles(running.busy)


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_break_off_raises(case: Case, after: int) -> None:
    if not case.scripted:
        pytest.skip("a real model does not break off when told")
    async with case.run("a", Knobs(faults=(Fault(after=after, of="stream"),))) as running:
        events: list[TextEvent] = []
        with pytest.raises(BackendUnavailable):
            async with running.backend.stream(request(running)) as stream:
                async for event in stream:
                    events.append(event)
        assert len(events) == after
        assert not any(isinstance(event, TextEnd) for event in events)
        await settles(running.busy)


async def test_leaving_early_frees(case: Case) -> None:
    async with case.run("a", Knobs(delay=0.01, seats=1)) as running:
        for _ in range(3):  # a seat that were not given back would overload the next
            async with running.backend.stream(request(running)) as events:
                await anext(events)
            await settles(running.busy)


async def test_cancelling_frees(case: Case) -> None:
    async with case.run("a", Knobs(delay=0.2, seats=1)) as running:
        for pause in (0.0, 0.05, 0.3):
            with anyio.move_on_after(pause) as scope:
                await read(running, max_tokens=2000)
            assert scope.cancelled_caught
            await settles(running.busy)


async def test_the_queue_is_bounded(case: Case) -> None:
    async with case.run("a", Knobs(seats=1, queue=1)) as running:
        finished: list[str] = []

        async def second() -> None:
            finished.append(text(await read(running)))

        async with anyio.create_task_group() as group:
            async with running.backend.stream(request(running)) as events:
                await anext(events)
                group.start_soon(second)
                await anyio.sleep(0.05)
                with pytest.raises(BackendOverloaded):
                    await read(running)
                assert not finished
        assert len(finished) == 1
        await settles(running.busy)


async def test_a_prompt_beyond_the_context_is_refused(case: Case) -> None:
    async with case.run("a", Knobs(context=256)) as running:
        running.prompt = (Message("user", "all work and no play " * 2000),)
        with pytest.raises(ContextTooLong):
            await read(running)
        await settles(running.busy)


async def test_a_closed_backend_serves_nothing(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        await running.backend.ready()
        await running.backend.aclose()
        await running.backend.aclose()
        with pytest.raises(BackendError):
            await read(running)
        with pytest.raises(BackendError):
            await running.backend.ready()
