"""Servers of one model: one that fails is left out, whenever it fails, and comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import orjson
import pytest

from backends.errors import BackendTimeout, BackendUnavailable
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.fake.server import FakeServer
from backends.protocol import ReplicatedBackend, SeatedBackend
from backends.types import ForwardRequest, Message, TextDelta, TextRequest
from backends.vllm import VLLMBackend, VLLMSettings
from backends.wrappers import Guard, Policy, guarded

pytestmark = pytest.mark.anyio
ASK = TextRequest((Message("user", "Why?"),))


@asynccontextmanager
async def pair(*faults: Fault, **settings: float) -> AsyncIterator[tuple[VLLMBackend, list[FakeBackend]]]:
    """A model on two servers, of which the first has these faults."""
    behind = [FakeBackend("up", FakeSettings("one", faults=faults)), FakeBackend("up", FakeSettings("two"))]
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(each, dialect="plain")) for each in behind]
        urls = tuple(server.base_url for server in servers)
        backend = VLLMBackend("m", VLLMSettings(urls=urls, model="up", sessions="off", **{"retry": 0.2, **settings}))  # type: ignore[arg-type]
        stack.push_async_callback(backend.aclose)
        yield backend, behind


async def said(backend: VLLMBackend) -> str:
    async with backend.stream(ASK) as events:
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])


async def handed_on(backend: VLLMBackend) -> str:
    fields = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}
    request = ForwardRequest(orjson.dumps(fields), fields, "m", True, 5.0)
    data = b""
    async with backend.forward(request) as answer:
        while part := await answer.read():
            data += part
    events = [event.removeprefix("data: ") for event in data.decode().split("\n\n")]
    chunks = [orjson.loads(event) for event in events if event.startswith("{")]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def test_one_that_breaks_off_in_its_answer_is_left_out() -> None:
    async with pair(Fault(on="token", of="stream", after=1, times=1)) as (backend, behind):
        with pytest.raises(BackendUnavailable):
            await said(backend)
        assert backend.replicas_out == 1
        assert [await said(backend) for _ in range(4)] == ["two"] * 4
        await anyio.sleep(0.25)
        assert backend.replicas_out == 0 and await said(backend) == "one"
        assert backend.loads == [0, 0] and not any(each.counters.streams for each in behind)


async def test_the_same_for_answers_that_are_handed_on() -> None:
    async with pair(Fault(on="token", of="stream", after=1, times=1)) as (backend, _):
        with pytest.raises(BackendUnavailable):
            await handed_on(backend)
        assert backend.replicas_out == 1 and backend.loads == [0, 0]
        assert await handed_on(backend) == "two"


@pytest.mark.parametrize("ask", [said, handed_on], ids=["read", "handed on"])
async def test_one_that_freezes_is_left_out_when_its_time_is_over(ask: object) -> None:
    async with pair(Fault(on="token", of="stream", action="hang", times=1), first_byte_timeout=0.2) as (backend, _):
        with pytest.raises(BackendTimeout):
            await ask(backend)  # type: ignore[operator]
        assert backend.replicas_out == 1 and backend.loads == [0, 0]
        assert await ask(backend) == "two"  # type: ignore[operator]


async def test_many_answers_broken_at_once_are_one_failure() -> None:
    """Else ten clients of a server that was restarted would keep it out for minutes."""
    broken = []

    async def one() -> None:
        try:
            await said(backend)
        except BackendUnavailable as error:
            broken.append(error)

    faults = (Fault(on="token", of="stream", action="slow", seconds=0.1), Fault(on="token", of="stream", after=1))
    async with pair(*faults, retry=0.5) as (backend, _):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(one)
        assert len(broken) >= 2 and backend._replicas[0]._pause == 1.0


async def test_what_a_guard_and_metrics_need_is_there() -> None:
    async with pair() as (backend, _):
        wrapped = guarded(backend, Guard("m", Policy()))
        assert isinstance(backend, SeatedBackend) and isinstance(backend, ReplicatedBackend)
        assert await said(wrapped) == "one"  # type: ignore[arg-type]
        assert (backend.replicas, backend.replicas_out, backend.seats.taken) == (2, 0, 0)
