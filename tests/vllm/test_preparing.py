"""Reading early, over a door without vLLM: what is asked of the server, when nothing is, and that nothing of it stays. Quick."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from fake_door import FakeDoor, settled

from backends.errors import BackendUnavailable, CapabilityMissing
from backends.protocol import PreparingBackend
from backends.types import Message
from backends.vllm import VLLMBackend, VLLMSettings, frames
from backends.vllm.reading import OFTEN, SELDOM

pytestmark = pytest.mark.anyio

ASK = (Message("user", "What do rivers do? Here is a draft answer, which may contain mistakes:"),)
MORE = (Message("user", f"{ASK[0].content} They run to the sea, and on the way they"),)
OTHER = (Message("user", "Why is the sky blue?"),)


def backend_of(*doors: FakeDoor, **settings: Any) -> VLLMBackend:
    return VLLMBackend("m", VLLMSettings(urls=tuple(door.url for door in doors), **{"retry": 0.05, **settings}))


async def early(backend: VLLMBackend, messages: tuple[Message, ...], *, ended: bool = True) -> int:
    """What one call of a reading says."""
    reading = backend.reading(k=4)
    try:
        return await reading.prepare(messages, ended=ended)
    finally:
        with anyio.CancelScope(shield=True):
            await reading.close()


async def test_it_is_read_in_a_session_that_is_closed_again() -> None:
    async with FakeDoor(info={"prefix_cache": 128}) as door:
        backend = backend_of(door, extra_body={"chat_template_kwargs": {"thinking": False}, "top_k": 4})
        assert isinstance(backend, PreparingBackend)
        assert await early(backend, ASK) == 128
        await settled(door)
        async with backend.open(ASK, k=4) as session:
            await session.step()
        first, later = door.prompts
        assert first == later and first["chat_template_kwargs"] == {"thinking": False}
        assert door.model.counters.passes == 2  # it was waited for
        assert (backend.admitted, backend.loads) == (0, [0])
        await settled(door)
        await backend.aclose()


async def test_where_sessions_can_follow_each_other_the_stage_s_goes_on_from_what_was_read() -> None:
    async with FakeDoor(info={"early": True}) as door:
        backend = backend_of(door)
        reading = backend.reading(k=4)
        assert await reading.prepare(ASK, ended=False) == OFTEN
        assert await reading.prepare(MORE, ended=True) == OFTEN
        assert (door.live, door.model.counters.passes) == (1, 2) and backend.readings == 1
        async with reading.open(MORE, k=4) as session:
            assert backend.readings == 0
            await session.step()
            assert (door.live, door.opened) == (1, 3)
        assert door.asked == [
            {"early": "settled", "followed": False},
            {"early": "whole", "followed": True},
            {"followed": True},
        ]
        assert door.prompts[1] == door.prompts[2]
        await reading.close()
        await settled(door)
        async with reading.open(MORE, k=4) as session:  # as is done where a stage begins again
            await session.step()
        assert door.asked[-1] == {"followed": False}
        await settled(door)
        assert (backend.admitted, backend.loads, backend.readings) == (0, [0], 0)
        await backend.aclose()


async def test_what_was_called_off_is_followed_all_the_same() -> None:
    """Its pass is under way, and what the stage would have to wait for anyway."""
    async with FakeDoor(info={"early": True}, first_delay=0.3) as door:
        backend = backend_of(door)
        reading = backend.reading(k=4)
        with anyio.move_on_after(0.1) as scope:
            await reading.prepare(ASK, ended=True)
        assert scope.cancelled_caught and door.live == 1 and backend.readings == 1
        async with reading.open(ASK, k=4) as session:
            await session.step()
        assert [asked["followed"] for asked in door.asked] == [False, True]
        await settled(door)
        await backend.aclose()


async def test_a_server_with_other_work_is_read_on_less_often_and_never_to_the_end() -> None:
    async with FakeDoor(info={"early": True}) as door:
        backend = backend_of(door)
        reading, other = backend.reading(k=4), backend.reading(k=4)
        async with backend.open(OTHER, k=4):
            assert await reading.prepare(ASK, ended=True) == SELDOM
        assert await reading.prepare(MORE, ended=True) == OFTEN
        assert await other.prepare(OTHER, ended=True) == SELDOM  # two that read are in each other's way
        assert [asked["early"] for asked in door.asked if "early" in asked] == ["settled", "whole", "settled"]
        await reading.close()
        await other.close()
        await settled(door)
        assert backend.readings == 0
        await backend.aclose()


async def test_what_was_read_on_a_connection_that_is_lost_is_gone() -> None:
    async with FakeDoor(info={"early": True}) as door:
        backend = backend_of(door)
        reading = backend.reading(k=4)
        await reading.prepare(ASK, ended=True)
        await door.stop()
        await door.start()
        while True:
            try:
                assert await reading.prepare(MORE, ended=True) == OFTEN
                break
            except BackendUnavailable:  # it has not been noticed yet
                await anyio.sleep(0.01)
        assert door.asked[-1] == {"early": "whole", "followed": False}
        await door.stop()
        await door.start()
        await anyio.sleep(0.1)
        async with reading.open(MORE, k=4) as session:
            await session.step()
        assert door.asked[-1] == {"followed": False}
        await settled(door)
        assert backend.readings == 0
        await backend.aclose()


async def test_without_a_prefix_cache_a_stage_that_opens_sessions_can_still_be_read_for() -> None:
    async with FakeDoor(info={"early": True, "prefix_cache": 0}) as door:
        backend = backend_of(door)
        reading = backend.reading(k=4)
        assert await reading.prepare(ASK, ended=True) == OFTEN
        await reading.close()
        reading = backend.reading(k=None)
        with pytest.raises(CapabilityMissing, match="prefix cache is off"):
            await reading.prepare(ASK, ended=True)
        await reading.close()
        await settled(door)
        await backend.aclose()


async def test_for_a_model_that_writes_by_itself_blocks_are_filled() -> None:
    async with FakeDoor(info={"early": True}) as door:
        backend = backend_of(door)
        reading = backend.reading(k=None)
        assert await reading.prepare(ASK, ended=False) == await reading.prepare(MORE, ended=True) == OFTEN
        assert [asked["early"] for asked in door.asked] == ["settled", "blocks"]
        await reading.close()
        await settled(door)
        await backend.aclose()


async def test_without_a_free_seat_nothing_is_asked() -> None:
    """Others who want a seat meanwhile do not wait for it either."""
    async with FakeDoor(first_delay=0.2) as door:
        backend = backend_of(door, seats=1, queue=0)
        async with backend.open(OTHER, k=4):
            assert await early(backend, ASK) == 0
        assert door.opened == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(early, backend, ASK)
            await anyio.sleep(0.05)
            assert await early(backend, ASK) == 0  # one at a time has the free seat in view
            async with backend.open(OTHER, k=4):
                pass
        assert door.opened == 3
        await settled(door)
        await backend.aclose()


async def test_a_server_whose_sessions_are_half_taken_is_left_to_them() -> None:
    async with FakeDoor(info={"sessions": 4}) as door:
        backend = backend_of(door)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(backend.open(OTHER, k=4))
            assert await early(backend, ASK) == SELDOM
            await stack.enter_async_context(backend.open(OTHER, k=4))
            assert await early(backend, ASK) == 0
        await backend.aclose()


async def test_a_server_that_lets_nobody_in_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.vllm.reading.ADMISSION", 0.1)
    async with FakeDoor() as door:
        backend = backend_of(door)
        await backend.vocabulary()
        door.full = True
        began = time.monotonic()
        assert await early(backend, ASK) == 0
        assert time.monotonic() - began < 1
        door.full = False
        assert await early(backend, ASK) == SELDOM
        assert backend.replicas_out == 0
        await settled(door)
        await backend.aclose()


@pytest.mark.parametrize(
    ("info", "settings", "reason"),
    [
        ({"prefix_cache": 0}, {}, "prefix cache is off"),
        ({"sessions": 0, "why_not": "it decodes speculatively"}, {}, "it decodes speculatively"),
        ({}, {"sessions": "off"}, "switched off"),
    ],
)
async def test_where_nothing_is_kept_or_can_be_asked_it_says_so(info: Any, settings: Any, reason: str) -> None:
    async with FakeDoor(info=info) as door:
        backend = backend_of(door, **settings)
        with pytest.raises(CapabilityMissing, match=reason):
            await early(backend, ASK)
        assert door.opened == 0
        await backend.aclose()


async def test_a_connection_that_is_lost_meanwhile_says_nothing_about_the_server() -> None:
    async with FakeDoor(first_delay=0.3) as door:
        backend = backend_of(door)
        await backend.vocabulary()
        with pytest.raises(BackendUnavailable):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cut, door)
                try:
                    await early(backend, ASK)
                except BackendUnavailable as error:
                    lost = error
            raise lost
        assert backend.replicas_out == 0 and backend.readings == 0
        await door.start()
        async with backend.open(ASK, k=4) as session:
            await session.step()
        await backend.aclose()


async def _cut(door: FakeDoor) -> None:
    await anyio.sleep(0.1)
    await door.stop()


async def test_failures_of_the_server_are_told_and_leave_nothing() -> None:
    async with FakeDoor() as door:
        backend = backend_of(door)
        door.fail = frames.UNAVAILABLE
        with pytest.raises(BackendUnavailable):
            await early(backend, ASK)
        assert backend.replicas_out == 0 and backend.readings == 0
        await settled(door)
        await backend.aclose()


async def test_called_off_at_any_moment_it_leaves_nothing() -> None:
    async with FakeDoor(first_delay=0.1) as door:
        backend = backend_of(door)
        for pause in (0.0, 0.005, 0.02, 0.05):
            with anyio.move_on_after(pause):
                await early(backend, ASK)
            assert backend.readings == 0
            await settled(door)
        await backend.aclose()


async def test_what_was_read_on_one_of_several_servers_is_read_on_there() -> None:
    """As long as it is not clearly busier than the others."""
    async with FakeDoor() as one, FakeDoor() as two, FakeDoor() as three:
        doors = {door.url: door for door in (one, two, three)}
        backend = backend_of(*doors.values())
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(backend.open(OTHER, k=4))
            await first.step()
            await early(backend, ASK)  # one of the two others
            while sum(door.live for door in doors.values()) > 1:
                await anyio.sleep(0.005)
            (warm,) = [door for door in doors.values() if door.opened and not door.live]
            opened = warm.opened
            await early(backend, MORE)
            assert warm.opened == opened + 1
            await settled(warm)
            for expected in (1, 2):  # it has at most one more to do than the least loaded
                await stack.enter_async_context(backend.open(MORE, k=4))
                assert warm.live == expected
            await stack.enter_async_context(backend.open(MORE, k=4))
            assert warm.live == 2
        await backend.aclose()
