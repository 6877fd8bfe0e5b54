"""What every token session promises: the laws on which fusion stands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import numpy as np
import pytest
from contract_cases import Case, Knobs

from backends.errors import BackendOverloaded, CapabilityMissing, ContextTooLong, SessionClosed
from backends.protocol import Session, TokenBackend
from backends.types import Message, Sampling, TextDelta, TextRequest, TopK

pytestmark = pytest.mark.anyio

K = 8


def same(one: TopK, other: TopK, atol: float = 0.0) -> None:
    """Two views of one position. With a tolerance (nats), what both list is compared: ids near a tie may change places."""
    if atol == 0:
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert one.outside == other.outside
        return
    mine, theirs = (dict(zip(top.ids.tolist(), top.logprobs.tolist(), strict=True)) for top in (one, other))
    common = sorted(mine.keys() & theirs.keys())
    assert len(common) >= len(mine) - 2
    left, right = np.array([mine[id] for id in common]), np.array([theirs[id] for id in common])
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)
    np.testing.assert_allclose(np.exp(left), np.exp(right), rtol=0, atol=atol / 10)  # the likely ones are nearer
    assert one.outside == pytest.approx(other.outside, abs=atol / 10)


async def settles(busy: Callable[[], int]) -> None:
    with anyio.fail_after(30):
        while busy():
            await anyio.sleep(0.005)


async def greedy(session: Session, n: int) -> list[int]:
    """The first n likeliest ids, each appended by the next step; the session then stands before the last of them."""
    ids: list[int] = []
    top = await session.step()
    for _ in range(n):
        ids.append(int(top.ids[0]))
        if len(ids) < n:
            top = await session.step(ids[-1:])
    return ids


async def test_the_vocabulary_is_a_table(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        assert isinstance(running.backend, TokenBackend)
        vocabulary = await running.backend.vocabulary()
        assert vocabulary.end_ids
        assert all(0 <= id < len(vocabulary) and vocabulary.tokens[id] == b"" for id in vocabulary.end_ids)
        assert int(vocabulary.fingerprint, 16) >= 0
        assert sum(map(bool, vocabulary.tokens)) > 100
        assert await running.backend.vocabulary() is vocabulary


@pytest.mark.parametrize("k", [1, K, 10**6])
async def test_a_top_k_is_a_cut_distribution(case: Case, k: int) -> None:
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=k) as session:
        size = len(await running.backend.vocabulary())
        assert session.prompt_tokens > 0
        for append in ((), (70,), (65, 66)):
            top = await session.step(append)
            assert top.ids.dtype == np.int32
            assert top.logprobs.dtype == np.float64
            assert len(top.ids) == len(top.logprobs) == min(k, size, case.max_k or k)
            assert len(set(top.ids.tolist())) == len(top.ids)
            assert top.ids.min() >= 0
            assert top.ids.max() < size
            pairs = list(zip(-top.logprobs, top.ids, strict=True))
            assert pairs == sorted(pairs)
            assert 0 <= top.outside <= 1
            assert np.exp(top.logprobs).sum() + top.outside == pytest.approx(1, abs=1e-4)
            assert (top.outside == 0) == (len(top.ids) == size)


async def test_a_step_of_nothing_changes_nothing(case: Case) -> None:
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=K) as session:
        same(await session.step(), await session.step())
        first = await session.step((70, 71))
        same(first, await session.step(()))


async def test_a_scored_draft_equals_single_steps(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        async with running.backend.open(running.prompt, k=K) as session:
            draft = await greedy(session, 4)
            draft[2] = 70  # not what it would have said
        async with running.backend.open(running.prompt, k=K) as session:
            await session.step()
            stepped = [await session.step([id]) for id in draft]
        async with running.backend.open(running.prompt, k=K) as session:
            await session.step()
            scored = await session.score(draft)
            assert len(scored) == len(draft)
            for one, other in zip(stepped, scored, strict=True):
                same(one, other, case.draft_atol)
            same(stepped[-1], await session.step(), case.draft_atol)
            with pytest.raises(ValueError, match="draft"):
                await session.score([])


async def test_a_draft_may_be_scored_first(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        async with running.backend.open(running.prompt, k=K) as session:
            stepped = await session.step([70])
        async with running.backend.open(running.prompt, k=K) as session:
            same(stepped, (await session.score([70]))[0], case.draft_atol)


async def test_rewind_forgets(case: Case) -> None:
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=K) as session:
        start = await session.step()
        first = await session.step([70])
        await session.step([71, 72])
        await session.rewind(2)
        same(first, await session.step())
        await session.rewind(1)
        same(first, await session.step([70]))
        (scored,) = await session.score([71])
        await session.rewind(2)
        same(start, await session.step())
        same(scored, await session.step([70, 71]), case.draft_atol)


async def test_rewind_never_touches_the_prompt(case: Case) -> None:
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=K) as session:
        await session.step([70])
        with pytest.raises(ValueError, match="drop"):
            await session.rewind(2)
        with pytest.raises(ValueError, match="drop"):
            await session.rewind(-1)
        await session.rewind(1)
        with pytest.raises(ValueError, match="drop"):
            await session.rewind(1)


async def test_lookup_agrees_with_the_list(case: Case) -> None:
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=K) as session:
        for look in (session.step, lambda: session.step([70]), lambda: session.score([71, 72])):
            seen = await look()
            top = seen[-1] if isinstance(seen, list) else seen
            found = await session.lookup(top.ids[::-1].tolist())
            assert found.dtype == np.float64
            np.testing.assert_allclose(found[::-1], top.logprobs, rtol=0, atol=1e-9)


async def test_lookup_gives_what_is_not_listed(case: Case) -> None:
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=K) as session:
        top = await session.step([70])
        others = [id for id in range(60, 100) if id not in set(top.ids.tolist())]
        try:
            found = await session.lookup([others[0], int(top.ids[0]), *others[1:]])
        except CapabilityMissing:
            pytest.skip("this server gives no single log-probabilities")
        assert found.shape == (len(others) + 1,)
        assert found[1] == pytest.approx(top.logprobs[0], abs=1e-9)
        unlisted = np.delete(found, 1)
        assert unlisted.max() <= top.logprobs[-1] + 1e-9
        assert np.exp(unlisted).sum() <= top.outside + 1e-6
        same(top, await session.step())  # looking moves nothing


async def test_closing_is_for_ever(case: Case) -> None:
    async with case.run("a", Knobs(seats=1)) as running:
        async with running.backend.open(running.prompt, k=K) as session:
            await session.step()
            await session.close()
            await session.close()
            await settles(running.busy)
            async with running.backend.open(running.prompt, k=K) as other:  # the seat is free before the block is left
                await other.step()
            for call in (session.step(), session.score([70]), session.lookup([70]), session.rewind(0)):
                with pytest.raises(SessionClosed):
                    await call
        with pytest.raises(SessionClosed):
            await session.step()


async def test_sessions_do_not_disturb_each_other(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        async with running.backend.open(running.prompt, k=K) as session:
            alone = await greedy(session, 4)
            beside = await session.step([70])
        async with AsyncExitStack() as stack:
            one, two = [await stack.enter_async_context(running.backend.open(running.prompt, k=K)) for _ in range(2)]
            await two.step(alone[:3])
            assert await greedy(one, 4) == alone
            same(beside, await one.step([70]))
            assert int((await two.step()).ids[0]) == alone[3]


async def test_greedy_tokens_are_the_streamed_text(case: Case) -> None:
    async with case.run("a", Knobs()) as running:
        async with running.backend.open(running.prompt, k=1) as session:
            ids = await greedy(session, 12)
        tokens = (await running.backend.vocabulary()).tokens
        request = TextRequest(tuple(running.prompt), Sampling(max_tokens=12, temperature=0.0))
        async with running.backend.stream(request) as events:
            text = "".join([event.text async for event in events if isinstance(event, TextDelta)])
        assert b"".join(tokens[id] for id in ids).decode(errors="replace") == text


async def test_leaving_and_cancelling_free(case: Case) -> None:
    async with case.run("a", Knobs(delay=0.1, seats=1)) as running:
        for pause in (0.0, 0.05, 0.15):
            with anyio.move_on_after(pause):
                async with running.backend.open(running.prompt, k=K) as session:
                    while True:
                        await session.step([70])
            await settles(running.busy)
        with pytest.raises(RuntimeError, match="left"):
            async with running.backend.open(running.prompt, k=K):
                raise RuntimeError("left")
        await settles(running.busy)


async def test_the_queue_is_bounded(case: Case) -> None:
    async with case.run("a", Knobs(seats=1, queue=1)) as running:
        order: list[str] = []

        async def second() -> None:
            async with running.backend.open(running.prompt, k=K) as session:
                await session.step()
                order.append("second")

        async with anyio.create_task_group() as group:
            async with running.backend.open(running.prompt, k=K) as session:
                await session.step()
                group.start_soon(second)
                await anyio.sleep(0.05)
                with pytest.raises(BackendOverloaded):
                    async with running.backend.open(running.prompt, k=K):
                        order.append("third")
                order.append("first")
        assert order == ["first", "second"]
        await settles(running.busy)


async def test_one_who_waits_can_leave(case: Case) -> None:
    async with case.run("a", Knobs(seats=1, queue=1)) as running:
        async with running.backend.open(running.prompt, k=K):
            for _ in range(3):
                with anyio.move_on_after(0.01) as scope:
                    async with running.backend.open(running.prompt, k=K):
                        pytest.fail("there was no place")
                assert scope.cancelled_caught
        async with running.backend.open(running.prompt, k=K) as session:
            await session.step()


async def test_a_prompt_beyond_the_context_is_refused(case: Case) -> None:
    async with case.run("a", Knobs(context=256)) as running:
        with pytest.raises(ContextTooLong):
            async with running.backend.open([Message("user", "all work and no play " * 2000)], k=K) as session:
                await session.step()
        with pytest.raises(ContextTooLong):  # the room asked for counts
            async with running.backend.open(running.prompt, k=K, max_tokens=10**6) as session:
                await session.step()
        await settles(running.busy)


async def test_a_session_can_grow_only_to_the_context(case: Case) -> None:
    async with case.run("a", Knobs(context=256)) as running:
        async with running.backend.open(running.prompt, k=K) as session:
            top = await session.step([70])
            with pytest.raises(ContextTooLong):
                await session.step([70] * 300)
            same(top, await session.step())  # what did not fit was not appended


async def test_opening_in_the_order_of_names_never_deadlocks(case: Case) -> None:
    knobs = Knobs(seats=1, queue=16)
    async with case.run("a", knobs) as a, case.run("b", knobs) as b:
        done: list[int] = []

        async def group(n: int) -> None:
            async with (
                a.backend.open(a.prompt, k=K) as one,
                b.backend.open(b.prompt, k=K) as two,
            ):
                await two.step()
                await one.step()
                done.append(n)

        with anyio.fail_after(110):
            async with anyio.create_task_group() as tasks:
                for n in range(6):
                    tasks.start_soon(group, n)
        assert sorted(done) == list(range(6))
        await settles(a.busy)
        await settles(b.busy)
