"""The gateway's side, against a door without vLLM: replicas, failures, capabilities. Quick; no engine is started."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import numpy as np
import pytest
from fake_door import FakeDoor, settled

from backends.errors import (
    BackendAuthFailed,
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    CapabilityMissing,
    ContextTooLong,
    RequestRejected,
    SessionClosed,
)
from backends.protocol import DraftingSession, TokenBackend
from backends.types import Message
from backends.vllm import VLLMBackend, VLLMSettings, frames

pytestmark = pytest.mark.anyio

ASK = (Message("user", "What do rivers do?"),)


def backend_of(*doors: FakeDoor, **settings: Any) -> VLLMBackend:
    return VLLMBackend("m", VLLMSettings(urls=tuple(door.url for door in doors), **{"retry": 0.05, **settings}))


async def answer(backend: VLLMBackend) -> str:
    tokens = (await backend.vocabulary()).tokens
    ids: list[int] = []
    ends = (await backend.vocabulary()).end_ids
    async with backend.open(ASK, k=8) as session:
        top = await session.step()
        while (id := int(top.ids[0])) not in ends:
            ids.append(id)
            top = await session.step([id])
    return b"".join(tokens[id] for id in ids).decode()


async def test_sessions_look_up_score_and_go_back() -> None:
    async with FakeDoor() as door:
        backend = backend_of(door, sessions="on")
        assert isinstance(backend, TokenBackend)
        await backend.start()
        await backend.ready()
        assert await backend.why_not_fused() is None
        assert (await backend.vocabulary()).tokens == (await door.model.vocabulary()).tokens
        assert await answer(backend) == "All rivers run to the sea."
        async with backend.open(ASK, k=4) as session:
            start = await session.step()
            others = [id for id in range(100) if id not in start.ids.tolist()]
            looked = await session.lookup([int(start.ids[1]), *others])
            assert looked[0] == start.logprobs[1]
            assert looked[1:].max() <= start.logprobs[-1] + 1e-6
            rows = await session.score([70, 71, 72])
            await session.rewind(3)
            assert await session.step() is start  # seen before: no request
            assert (await session.lookup(others)).tolist() == looked[
                1:
            ].tolist()  # and yet the server can be asked there
            one = await session.step([70])
            np.testing.assert_array_equal(one.logprobs, rows[0].logprobs)
        with pytest.raises(SessionClosed):
            await session.step()
        await settled(door)
        await backend.aclose()


async def test_values_inside_a_draft_are_asked_for_where_the_server_keeps_them() -> None:
    """And only those that are not listed; before the session moves."""
    others = list(range(100))
    async with FakeDoor(info={"recall": True, "drafts": "one pass"}) as door:
        backend = backend_of(door, sessions="on")
        await backend.start()
        async with backend.open(ASK, k=4) as session:
            await session.step()
            stepped = []
            for id in (70, 71, 72):
                await session.step([id])
                stepped.append(await session.lookup(others))
            await session.rewind(3)
            assert isinstance(session, DraftingSession)
            assert not session.reads_singly
            tops = await session.score([70, 71, 72])
            for back in (1, 2):
                assert (await session.recall(back, others)).tolist() == stepped[-1 - back].tolist()
            assert (await session.lookup(others)).tolist() == stepped[-1].tolist()
            asked = door.lookups
            assert (await session.recall(2, tops[0].ids[::-1])).tolist() == tops[0].logprobs[::-1].tolist()
            assert door.lookups == asked
            door.gone = True
            with pytest.raises(CapabilityMissing, match="any more"):
                await session.recall(2, others)
            door.gone = False
            for refused in (session.step, session.score):
                door.fail = frames.OVERLOADED
                with pytest.raises(BackendOverloaded):
                    await refused([73])
                door.fail = None
                assert (await session.recall(2, others)).tolist() == stepped[0].tolist()  # it has not moved
            await session.rewind(1)
            with pytest.raises(CapabilityMissing):
                await session.recall(1, others)
        await backend.aclose()


async def test_servers_of_before_are_not_asked_for_values_inside_a_draft() -> None:
    async with FakeDoor(info={"drafts": "steps"}) as door:
        backend = backend_of(door, sessions="on")
        await backend.start()
        async with backend.open(ASK, k=4) as session:
            await session.step()
            assert isinstance(session, DraftingSession)
            assert session.reads_singly
            tops = await session.score([70, 71])
            assert (await session.recall(1, tops[0].ids)).tolist() == tops[0].logprobs.tolist()
            with pytest.raises(CapabilityMissing, match="last place"):
                await session.recall(1, range(100))
            assert not door.lookups
        await backend.aclose()


async def test_new_sessions_go_to_the_server_with_least_to_do_and_stay_there() -> None:
    async with FakeDoor() as one, FakeDoor() as other:
        backend = backend_of(one, other)
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(backend.open(ASK, k=4)) for _ in range(6)]
            assert (one.live, other.live) == (3, 3)
            assert backend.loads == [3, 3]
            for session in sessions:
                await session.step()
            await sessions[0].close()
        await settled(one)
        assert (one.dials, other.dials) == (1, 1)  # one connection each
        assert backend.loads == [0, 0]
        await backend.aclose()


async def test_a_dead_server_is_left_out_and_comes_back() -> None:
    async with FakeDoor() as one, FakeDoor() as other:
        backend = backend_of(one, other)
        async with backend.open(ASK, k=4) as session, backend.open(ASK, k=4) as beside:
            await session.step()
            await one.stop()
            with pytest.raises(BackendUnavailable):
                await session.step([70])
            await beside.step([70])  # on the other one
            for _ in range(5):
                assert await answer(backend) == "All rivers run to the sea."
            assert other.opened == 6
            await one.start()
            await anyio.sleep(1.0)
            assert await answer(backend) == "All rivers run to the sea."
            assert one.opened == 2
        await backend.aclose()


async def test_no_server_at_all_is_unavailable() -> None:
    async with FakeDoor() as door:
        backend = backend_of(door)
        await door.stop()
        for call in (answer(backend), backend.ready(), backend.vocabulary()):
            with pytest.raises(BackendUnavailable):
                await call
        assert "BackendUnavailable" in str(await backend.why_not_fused())
        await door.start()
        await backend.ready()
        assert await backend.why_not_fused() is None
        await backend.aclose()


@pytest.mark.parametrize(
    ("refuse", "info", "reason"),
    [
        (403, {}, "without the modelnet-vllm extension"),
        (404, {}, "without the modelnet-vllm extension"),
        (None, {"sessions": 0, "why_not": "it decodes speculatively"}, "it decodes speculatively"),
    ],
)
async def test_a_server_that_opens_no_sessions_says_why(refuse: int | None, info: dict[str, Any], reason: str) -> None:
    async with FakeDoor(refuse=refuse, info=info) as door:
        backend = backend_of(door)
        await backend.start()
        await backend.ready()
        assert reason in str(await backend.why_not_fused())
        with pytest.raises(CapabilityMissing, match=reason):
            await answer(backend)
        await backend.aclose()
        strict = backend_of(door, sessions="on")
        with pytest.raises(CapabilityMissing, match=reason):
            await strict.start()
        await strict.aclose()


@pytest.mark.parametrize("refuse", [403, 404])
async def test_what_a_proxy_says_of_a_server_that_starts_again_is_not_that_it_can_do_less(refuse: int) -> None:
    async with FakeDoor() as door:
        backend = backend_of(door)
        assert await answer(backend) == "All rivers run to the sea."
        await door.stop()
        door.refuse = refuse
        await door.start()
        await anyio.sleep(0.05)
        with pytest.raises(BackendUnavailable):
            await answer(backend)
        door.refuse = None
        await anyio.sleep(0.1)
        assert await answer(backend) == "All rivers run to the sea."
        await backend.aclose()


async def test_replicas_with_other_tokenizers_are_not_mixed() -> None:
    async with FakeDoor() as one, FakeDoor(info={"fingerprint": "ff"}) as other:
        backend = backend_of(one, other)
        async with backend.open(ASK, k=4), backend.open(ASK, k=4):
            assert (one.live, other.live) == (2, 0)
        await backend.aclose()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (frames.REJECTED, RequestRejected),
        (frames.TOO_LONG, ContextTooLong),
        (frames.OVERLOADED, BackendOverloaded),
        (frames.UNAVAILABLE, BackendUnavailable),
        (frames.NO_SESSION, BackendUnavailable),
        (frames.UNSUPPORTED, CapabilityMissing),
        (999, BackendUnavailable),
    ],
)
async def test_every_failure_has_its_error(code: int, error: type[BackendError]) -> None:
    async with FakeDoor() as door:
        backend = backend_of(door)
        async with backend.open(ASK, k=4) as session:
            door.fail = code
            with pytest.raises(error) as raised:
                await session.step()
            assert raised.value.model == "m"
            if isinstance(raised.value, ContextTooLong):
                assert (raised.value.tokens, raised.value.limit) == (9, 7)
        await settled(door)
        await backend.aclose()


async def test_a_wrong_key_is_named() -> None:
    async with FakeDoor(refuse=401) as door:
        backend = backend_of(door, api_key="secret")
        with pytest.raises(BackendAuthFailed):
            await answer(backend)
        assert "secret" not in repr(backend._settings)
        await backend.aclose()


async def test_a_server_that_falls_silent_is_noticed() -> None:
    """By the step's own deadline, and by heartbeats where nobody waits."""
    async with FakeDoor() as door:
        backend = backend_of(door, step_timeout=0.1, heartbeat=0.1)
        async with backend.open(ASK, k=4) as session:
            await session.step()
            door.mute = True
            with pytest.raises(BackendTimeout):
                await session.step([70])
            await anyio.sleep(0.6)
            with pytest.raises(BackendUnavailable):
                await session.step([70])
        door.mute = False
        assert await answer(backend) == "All rivers run to the sea."
        await settled(door)
        await backend.aclose()


async def test_cancelled_openings_and_steps_leave_nothing() -> None:
    async with FakeDoor(first_delay=0.05, delay=0.05) as door:
        backend = backend_of(door, seats=1)
        await backend.vocabulary()
        for pause in (0.0, 0.01, 0.06, 0.12):
            with anyio.move_on_after(pause):
                async with backend.open(ASK, k=4) as session:
                    while True:
                        await session.step([70])
            assert backend.admitted == 0
            await settled(door)
        await backend.aclose()


async def test_a_closed_backend_is_closed() -> None:
    async with FakeDoor() as door:
        backend = backend_of(door)
        async with backend.open(ASK, k=4) as session:
            await backend.aclose()
            await backend.aclose()
            with pytest.raises(BackendError):
                await session.step()
        with pytest.raises(BackendError):
            await answer(backend)
        with pytest.raises(BackendError):
            await backend.ready()


def test_settings_are_checked() -> None:
    cases: dict[str, dict[str, Any]] = {
        "at least one": {"urls": ()},
        "twice": {"urls": ("http://a/v1", "http://a/v1")},
        "http://": {"urls": ("ftp://a",)},
        "positive": {"urls": ("http://a",), "heartbeat": 0},
        "sessions": {"urls": ("http://a",), "sessions": "perhaps"},
    }
    for said, wrong in cases.items():
        with pytest.raises(ValueError, match=said):
            VLLMSettings(**wrong)
