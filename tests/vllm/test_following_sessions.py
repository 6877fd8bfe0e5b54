"""Sessions that follow each other, over the extension's own door and a scripted engine: cancelled, crowded out, cut off. Needs no vLLM."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from scripted_engine import ScriptedDoor, importable, likeliest, rendered

from backends.errors import BackendError, BackendOverloaded
from backends.types import Message
from backends.vllm import VLLMBackend, VLLMSettings

pytestmark = pytest.mark.anyio

NOTHING = (0,) * 6


@pytest.fixture(autouse=True)
def _extension() -> Iterator[None]:
    with importable():
        yield


def told(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@asynccontextmanager
async def served(**settings: Any) -> Any:
    """A door and the model behind it; nothing may be left of either."""
    async with ScriptedDoor(**settings) as door:
        backend = VLLMBackend("m", VLLMSettings(urls=(door.url,), retry=0.05))
        yield door, backend
        with anyio.fail_after(5):
            while door.left != NOTHING:
                await anyio.sleep(0.005)
        assert (backend.readings, backend.loads, backend.admitted) == (0, [0], 0)
        await backend.aclose()


async def first(session: Any) -> int:
    return int((await session.step()).ids[0])


async def test_called_off_while_it_is_rendered_the_stage_goes_on_all_the_same() -> None:
    async with served() as (door, backend):
        for pause in (0.0, 0.001, 0.01, 0.03, 0.06):
            reading = backend.reading(k=4)
            assert await reading.prepare(told("a" * 50), ended=True)
            door.rendering = 0.02
            with anyio.move_on_after(pause):
                await reading.prepare(told("a" * 60), ended=True)
            sessions = list(door.host._sessions)
            async with reading.open(told("a" * 60), k=4) as session:
                assert await first(session) == likeliest(rendered("a" * 60))
                assert list(door.host._sessions) == sessions  # it is the same in the engine
            door.rendering = 0.0


async def test_a_stage_that_is_cancelled_while_it_opens_leaves_nothing() -> None:
    async with served() as (door, backend):
        for pause in (0.0, 0.001, 0.01, 0.03):
            reading = backend.reading(k=4)
            assert await reading.prepare(told("a" * 50), ended=True)
            door.rendering = 0.02
            with anyio.move_on_after(pause):
                async with reading.open(told("a" * 60), k=4) as session:
                    await session.step()
            await reading.close()
            door.rendering = 0.0


async def test_a_prompt_that_is_refused_ends_the_one_that_it_was_to_follow() -> None:
    async with served() as (door, backend):
        reading = backend.reading(k=4)
        assert await reading.prepare(told("a" * 50), ended=True)
        door.refuses = True
        with pytest.raises(BackendError):
            await reading.prepare(told("a" * 60), ended=True)
        assert backend.readings == 0
        await reading.close()


async def test_a_connection_that_is_lost_while_one_follows_leaves_nothing() -> None:
    for pause in (0.0, 0.001, 0.003, 0.01, 0.02):
        async with served() as (door, backend):
            reading = backend.reading(k=4)
            await reading.prepare(told("a" * 50), ended=True)
            door.rendering = 0.01

            async def go(reading: Any = reading) -> None:
                with suppress(BackendError):
                    await reading.prepare(told("a" * 60), ended=True)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go)
                await anyio.sleep(pause)
                await backend.aclose()
            await reading.close()


async def test_who_only_reads_waits_for_no_place_and_nobody_waits_for_him() -> None:
    """Room for two whole contexts, which stages take that do not say how much they will write."""
    async with served(sessions=96, tokens=2 * 512, context=512) as (door, backend):
        reading = backend.reading(k=4)
        async with backend.open(told("x" * 20), k=4) as one:
            await one.step()
            async with backend.open(told("y" * 20), k=4):
                with anyio.fail_after(1):
                    assert await reading.prepare(told("a" * 50), ended=True) == 0
            assert await reading.prepare(told("a" * 50), ended=True)
            with anyio.fail_after(1):
                async with backend.open(told("z" * 20), k=4) as session:  # it has the reader's room
                    assert await first(session) == likeliest(rendered("z" * 20))
                    assert len(door.host._waiting) == 0
            async with reading.open(told("a" * 50), k=4) as session:
                assert await first(session) == likeliest(rendered("a" * 50))


async def test_one_that_is_followed_gets_no_room_that_others_wait_for() -> None:
    async with served(sessions=8, tokens=512, context=512) as (door, backend):
        reading = backend.reading(k=4)
        assert await reading.prepare(told("a" * 50), ended=True)
        early = next(iter(door.host._waiting.values()))
        async with backend.open(told("x" * 20), k=4, max_tokens=300):
            waiting = asyncio.create_task(door.host.open([5] * 20, 4, 400))
            await anyio.sleep(0.02)
            assert door.host.places.waiting == 1 and not early.alive  # it was sent away, and it was not enough
            assert await reading.prepare(told("a" * 90), ended=True) == 0
        await (await waiting).close()
        await reading.close()


async def test_a_part_of_an_input_is_never_taken_for_its_end() -> None:
    """Where the engine's rows of parts come too, and the input before was under way when this one came."""
    from modelnet_vllm.host import Host  # type: ignore[import-not-found] # noqa: F401 - is there

    for pause in (0.0, 0.005, 0.015, 0.05):
        door = ScriptedDoor(hooks=False)
        door.engine.part = 16
        before, then = list(range(1, 60)), [*range(1, 41), *(200 + at % 50 for at in range(100))]
        one = await door.host.open(before, 4, 1, "whole")
        await anyio.sleep(pause)
        session = await door.host.open(then, 4, 8, None, one)
        assert session is one
        ids, _, _ = await session.step(0, [])
        assert ids[0][0] == likeliest(then)
        await session.close()
        assert door.left == NOTHING


@pytest.mark.parametrize("hooks", [True, False])
async def test_another_k_the_same_prompt_and_a_shorter_one(hooks: bool) -> None:
    for pause in (0.0, 0.004, 0.03):
        door = ScriptedDoor(hooks=hooks)
        prompt = list(range(1, 40))
        one = await door.host.open(prompt, 4, 1, "whole")
        await anyio.sleep(pause)
        for k in (4, 6):
            assert await door.host.open(prompt, k, 8, None, one) is one
            ids, _, _ = await one.step(0, [])
            assert ids.shape[1] == k and ids[0][0] == likeliest(prompt)
        ids, _, _ = await one.step(0, [9])
        assert ids[0][0] == likeliest([*prompt, 9])
        await door.host.open(prompt[:5], 6, 8, None, one)
        ids, _, _ = await one.step(0, [])
        assert ids[0][0] == likeliest(prompt[:5]) and one.prompt_tokens == 5
        await one.close()
        assert door.left == NOTHING


async def test_what_is_settled_is_read_once_and_what_ends_a_prompt_only_with_it() -> None:
    door = ScriptedDoor()
    tail = [9, 9, 8]
    one = await door.host.open([1, 2, 3, *tail], 4, 1, "settled")
    await one.step(0, [])
    await door.host.open([1, 2, 3, 4, 5, 6, *tail], 4, 1, "settled", one)
    assert one.ids == [1, 2, 3, 4, 5]
    await door.host.open([1, 2, 3, 4, 5, 6, *tail], 4, 1, "settled", one)  # nothing is new
    assert one.ids == [1, 2, 3, 4, 5]
    await door.host.open([1, 2, 3, 4, 5, 6, *tail], 4, 1, "whole", one)
    assert one.ids == [1, 2, 3, 4, 5, 6, *tail]
    await one.step(0, [])
    await one.close()


async def test_for_who_sends_a_request_of_its_own_whole_blocks_are_read() -> None:
    """What fills none stays in no cache, and is read again."""
    door = ScriptedDoor()
    one = await door.host.open(list(range(1, 21)), 4, 1, "blocks")
    for size, read in ((31, 20), (33, 32), (47, 32), (48, 48)):
        await one.step(0, [])
        await door.host.open(list(range(1, size + 1)), 4, 1, "blocks", one)
        assert one.ids == list(range(1, read + 1))
    await one.step(0, [])
    await one.close()


async def test_who_is_cancelled_behind_the_end_of_the_followed_one_waits_for_nothing_more() -> None:
    door = ScriptedDoor(sessions=1)
    one = await door.host.open([1] * 20, 4, 1, "whole")
    await one.step(0, [])
    anew = asyncio.create_task(door.host.open([9] * 20, 4, 8, None, one))  # nothing in common
    await asyncio.sleep(0)
    other = asyncio.create_task(door.host.open([7] * 20, 4, 8))
    await asyncio.sleep(0)
    anew.cancel()
    await asyncio.wait({anew}, timeout=1)
    assert anew.cancelled()
    await (await other).close()
    await anyio.sleep(0.01)
    assert door.left == NOTHING


async def test_readings_count_where_they_are() -> None:
    async with ScriptedDoor(sessions=4) as one, ScriptedDoor(sessions=4) as two, ScriptedDoor(sessions=4) as three:
        doors = one, two, three
        backend = VLLMBackend("m", VLLMSettings(urls=tuple(door.url for door in doors)))
        readings = [backend.reading(k=4) for _ in range(6)]
        for at, reading in enumerate(readings):
            assert await reading.prepare(told(f"{at}" * 50), ended=True)
        assert [door.host.places.taken for door in doors] == [2, 2, 2] and backend.readings == 6
        for reading in readings:
            await reading.close()
        await backend.aclose()


async def test_it_is_read_on_where_it_was_unless_that_has_clearly_more_to_do() -> None:
    async with ScriptedDoor() as one, ScriptedDoor() as two:
        backend = VLLMBackend("m", VLLMSettings(urls=(one.url, two.url)))
        reading = backend.reading(k=4)
        assert await reading.prepare(told("a" * 100), ended=True)
        replica, other = backend._replicas
        assert (replica.readings, one.host.places.taken) == (1, 1)
        replica.load += 1  # a stream that another request has there
        assert await reading.prepare(told("a" * 110), ended=True)
        assert (one.host.places.taken, two.host.places.taken) == (1, 0)
        replica.load += 1
        assert await reading.prepare(told("a" * 120), ended=True)
        await anyio.sleep(0.05)
        assert (one.host.places.taken, two.host.places.taken) == (0, 1)
        assert (replica.readings, other.readings) == (0, 1)
        other.load += 1
        async with reading.open(told("a" * 120), k=4) as session:
            assert await first(session) == likeliest(rendered("a" * 120))
            assert (one.host.places.taken, two.host.places.taken) == (0, 1)
        replica.load -= 2
        other.load -= 1
        await backend.aclose()


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_read_and_called_off_the_stage_gets_its_own_distribution(seed: int) -> None:
    """Three at once, with few places and little room."""
    random_ = random.Random(seed)
    tokens = random_.choice([None, 4 * 512])
    async with served(sessions=random_.choice([2, 3, 8]), tokens=tokens, context=512) as (door, backend):
        door.engine.passing, door.engine.part, door.rendering = 0.003, 64, random_.choice([0.0, 0.004])
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(_stages, backend, random_, number)


async def _stages(backend: VLLMBackend, random_: random.Random, number: int) -> None:
    for _ in range(4):
        reading, text = backend.reading(k=4), f"q{number} "
        try:
            for _ in range(random_.randint(0, 5)):
                text += random_.choice("abc") * random_.randint(1, 60)
                shown = text[: max(1, len(text) - random_.randint(0, 5))] + random_.choice(["", " review"])
                with anyio.move_on_after(random_.choice([9, 0.002, 0.005, 0.01, 0.02])):
                    await reading.prepare(told(shown), ended=random_.random() < 0.5)
            with anyio.move_on_after(random_.choice([9, 9, 9, 0.003, 0.01])):
                await _stage(reading, random_, f"{text} review")
        except BackendOverloaded:
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await reading.close()


async def _stage(reading: Any, random_: random.Random, text: str) -> None:
    ids, room = rendered(text), random_.choice([None, 20])
    async with reading.open(told(text), k=random_.choice([4, 4, 6]), max_tokens=room) as session:
        assert session.prompt_tokens == len(ids)
        for _ in range(random_.randint(1, 4)):
            more = random_.choice([[], [5], [6, 7]])
            ids += more
            assert int((await session.step(more)).ids[0]) == likeliest(ids)
