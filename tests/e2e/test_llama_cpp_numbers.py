"""What an embedded model's numbers depend on, on real weights: not on who else is served, on threads, or on what was kept of a prompt."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio
import numpy as np
import pytest
from embedded import CORES, LONG, QUESTION, Failing, assert_equal, greedy, running, weights

from backends.errors import BackendUnavailable
from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings
from backends.types import Message, Sampling, TextEnd, TextRequest, TopK

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.models,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="the extra 'embedded' is not installed"),
]


async def test_step_lookup_score_and_rewind_agree() -> None:
    async with running() as backend, backend.open(QUESTION, k=20) as session:
        steps = await greedy(session, 7)
        ids = [id for id, _ in steps]
        last = steps[-1][1]
        np.testing.assert_array_equal(await session.lookup(last.ids.tolist()), last.logprobs)
        everything = np.exp(await session.lookup(range(len(await backend.vocabulary()))))
        assert everything.sum() == pytest.approx(1, abs=1e-9)
        assert np.delete(everything, last.ids).sum() == pytest.approx(last.outside, rel=1e-9)
        with pytest.raises(ValueError, match="ids"):
            await session.lookup([-1])

        await session.rewind(6)
        with pytest.raises(ValueError, match="rewind"):
            await session.lookup([1])
        assert_equal(await session.step(ids[:3]), steps[3][1])  # three at once are the same as one by one
        await session.rewind(1)
        assert_equal(await session.step(), steps[2][1])  # the last token is decoded again
        assert_equal(await session.step(ids[2:3]), steps[3][1])

        await session.rewind(3)
        scored = await session.score(ids[:6])
        differences = [
            np.abs(one.logprobs[:5] - other.logprobs[:5]).max()
            for one, (_, other) in zip(scored, steps[1:], strict=True)
        ]
        assert max(differences) < 1.0  # one pass of another shape over 4-bit weights
        assert [int(top.ids[0]) for top in scored] == ids[1:]


async def test_who_else_is_served_does_not_change_a_bit() -> None:
    """Alone, and with three others who read long prompts, decode and leave: equal to the last bit."""
    async with running(seats=4) as backend:
        async with backend.open(QUESTION, k=10) as session:
            alone = await greedy(session, 12)

        async def other(messages: Sequence[Message], n: int) -> None:
            async with backend.open(messages, k=10) as session:
                await greedy(session, n)

        async with anyio.create_task_group() as group:
            group.start_soon(other, LONG, 4)
            group.start_soon(other, [Message("user", "Hi")], 20)
            group.start_soon(other, LONG, 2)
            async with backend.open(QUESTION, k=10) as session:
                beside = await greedy(session, 12)
        for (_, one), (_, two) in zip(alone, beside, strict=True):
            assert_equal(one, two)


async def steps_of(backend: LlamaCppBackend, number: int, together: anyio.Event | None = None) -> list[TopK]:
    """Six steps of a prompt of this number; where there are others, all begin at the same time."""
    question = [
        Message("user", f"Count to {number + 3}, and then say why. " * (25 if number == 1 else 1))
    ]  # one beyond 256 tokens
    async with backend.open(question, k=10) as session:
        top = await session.step()
        tops = []
        if together is not None:
            await together.wait()
        for _ in range(6):
            top = await session.step([int(top.ids[0])])
            tops.append(top)
        return tops


@pytest.mark.parametrize("name", ["smol", "qwen"])
async def test_all_seats_in_step_do_not_change_a_bit(name: str) -> None:
    """From some number of rows on, weights of some formats are computed with other code: fewer sequences share a pass then."""
    seats = 6
    async with running(name, seats=seats) as backend:
        alone = [await steps_of(backend, number) for number in range(seats)]
        together, beside = anyio.Event(), dict[int, list[TopK]]()

        async def one(number: int) -> None:
            beside[number] = await steps_of(backend, number, together)

        async with anyio.create_task_group() as group:
            for number in range(seats):
                group.start_soon(one, number)
            while backend.stats().used < seats:
                await anyio.sleep(0.01)
            together.set()
    for number, tops in enumerate(alone):
        for one_top, other in zip(tops, beside[number], strict=True):
            assert_equal(one_top, other)


@pytest.mark.parametrize("name", ["smol", "qwen"])
async def test_a_conversation_is_read_on_from_where_it_was(name: str) -> None:
    """The second turn begins as the first did: its whole chunks are not read again, and no bit is another one."""
    first = list(LONG)
    second = [*first, Message("assistant", "Baa, baa."), Message("user", "And now the song of the wolf.")]
    seen: dict[bool, list[list[tuple[int, TopK]]]] = {}
    for cached in (True, False):
        async with running(name, seats=2, prefix_cache=cached) as backend:
            seen[cached] = []
            for turn in (first, second, second):
                before = backend.stats()
                async with backend.open(turn, k=10) as session:
                    seen[cached].append(await greedy(session, 4))
                    length = session.prompt_tokens
                after = backend.stats()
                kept, read = after.kept_tokens - before.kept_tokens, after.prompt_tokens - before.prompt_tokens
                assert kept + read == length
                assert kept == 0 if (turn is first and len(seen[cached]) == 1) or not cached else kept >= 256
    for with_it, without in zip(seen[True], seen[False], strict=True):
        for (_, one), (_, other) in zip(with_it, without, strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("cached", [True, False])
async def test_a_stream_tells_how_much_of_its_prompt_was_kept(cached: bool) -> None:
    async with running(seats=2, prefix_cache=cached) as backend:
        told = []
        for _ in range(2):
            async with backend.stream(TextRequest(tuple(LONG), Sampling(max_tokens=2))) as events:
                (end,) = [event async for event in events if isinstance(event, TextEnd)]
            told.append(end.usage.cached_tokens)
    assert told[0] == (0 if cached else None)
    assert told[1] is None if not cached else 256 <= told[1] < end.usage.prompt_tokens


async def test_what_was_not_read_is_not_kept() -> None:
    """Who leaves while the prompt is read, and who changed its last token since, leave nothing wrong behind."""
    async with running(seats=1) as backend:
        async with backend.open(LONG, k=10) as session:
            right = await greedy(session, 4)
        async with backend.open([*LONG, *LONG], k=10):
            pass  # before anything was read
        async with backend.open([*LONG, *LONG], k=10) as session:
            before = backend.stats()
            await session.step()
            read = backend.stats().prompt_tokens - before.prompt_tokens
            assert session.prompt_tokens - 320 < read < session.prompt_tokens  # the first one is there in part
        async with backend.open(LONG, k=10) as session:
            tops = await greedy(session, 4)
            await session.rewind(3)
            await session.step()
        async with backend.open(LONG, k=10) as session:
            again = await greedy(session, 4)
    for (_, one), (_, two), (_, three) in zip(right, tops, again, strict=True):
        assert_equal(one, two)
        assert_equal(one, three)


async def test_the_thread_count_does_not_change_a_bit() -> None:
    found = []
    for threads in (1, 2):
        backend = LlamaCppBackend("smol", LlamaCppSettings(weights("smol"), context=1024, threads=threads), Cores(2))
        await backend.start()
        async with backend.open(LONG, k=10) as session:
            found.append(await greedy(session, 4))
        await backend.aclose()
    for (_, one), (_, two) in zip(*found, strict=True):
        assert_equal(one, two)


@pytest.mark.parametrize(
    ("name", "seats", "batching"), [("smol", 4, "exact"), ("qwen", 6, "fast")], ids=["exact", "fast"]
)
async def test_sessions_share_passes(name: str, seats: int, batching: str) -> None:
    async with running(name, seats=seats, batching=batching) as backend, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(backend.open(QUESTION, k=2)) for _ in range(seats)]
        for session in sessions:
            await session.step()
        before = backend.stats()
        assert before.used == seats
        async with anyio.create_task_group() as group:
            with CORES.lease(CORES.total):  # whoever comes first waits for a core, the others for the next pass
                for session in sessions:
                    group.start_soon(session.step, [70])
                await anyio.wait_all_tasks_blocked()
        after = backend.stats()
    assert after.decoded_tokens - before.decoded_tokens == seats
    assert after.passes - before.passes <= 2


@pytest.mark.parametrize("leaves", [False, True], ids=["hears of it", "has left"])
async def test_what_a_failure_emptied_is_read_again(monkeypatch: pytest.MonkeyPatch, leaves: bool) -> None:
    async with running(seats=1) as backend:
        assert backend._engine is not None
        context = backend._engine.context
        async with backend.open(LONG, k=5) as session:
            right = await greedy(session, 3)
        with monkeypatch.context() as patch:
            async with backend.open(LONG, k=5) as ill:
                await ill.step()
                patch.setattr(context, "_library", Failing(context._library))
                if leaves:
                    with CORES.lease(CORES.total):  # the pass begins, and can't go on
                        with anyio.move_on_after(0.05):
                            await ill.step([70])
                        await ill.close()
                    while backend._engine.worker._work:
                        await anyio.sleep(0.005)
                else:
                    with pytest.raises(BackendUnavailable):
                        await ill.step([70])
            await anyio.sleep(0.2)  # until the pass has failed
        before = backend.stats()
        async with backend.open(LONG, k=5) as session:
            again = await greedy(session, 3)
            assert backend.stats().prompt_tokens - before.prompt_tokens == session.prompt_tokens
    for (_, one), (_, two) in zip(right, again, strict=True):
        assert_equal(one, two)
