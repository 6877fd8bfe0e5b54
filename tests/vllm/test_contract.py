"""The contract suite over a real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from contract_cases import Knobs, Running
from test_drafting import *  # noqa: F403
from test_sessions import *  # noqa: F403
from test_sessions import K, same
from test_streams import *  # noqa: F403
from vllm_engines import KEY, PATIENT, Engine

from backends.errors import ContextTooLong
from backends.types import Message
from backends.vllm import VLLMBackend, VLLMSettings

pytestmark = pytest.mark.anyio


class VLLMCase:
    """A real model on a real engine: seats and queue are the knobs', the context is the engine's.

    draft_atol: bfloat16 rounds otherwise when several positions are computed in one pass. For the same reason two streams side by
    side may part at a near-tie, so the prompt is one whose answer has none.
    """

    draft_atol = 0.5
    scripted = False
    max_k: int | None = 512

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def run(self, name: str, knobs: Knobs) -> AsyncIterator[Running]:
        settings = VLLMSettings(
            urls=(self.engine.url,),
            model=self.engine.model,
            api_key=KEY,
            seats=knobs.seats,
            queue=knobs.queue,
            **PATIENT,
        )
        backend = VLLMBackend(name, settings)
        await backend.start()

        def busy() -> int:
            status = json.loads(self.engine.get("/v1/modelnet/status"))
            return backend.admitted + int(status["sessions"]) + int(status["waiting"])

        try:
            yield Running(backend, busy, (Message("user", "Write the numbers from 1 to 200, separated by spaces."),))
        finally:
            await backend.aclose()


@pytest.fixture
def case(engines: dict[str, Engine]) -> VLLMCase:
    return VLLMCase(engines["smol"])


async def test_a_session_can_grow_only_to_the_context(case: VLLMCase) -> None:
    """As in the suite, where the context is a knob; here it is the engine's 2048."""
    async with case.run("a", Knobs()) as running, running.backend.open(running.prompt, k=K) as session:
        top = await session.step([70])
        with pytest.raises(ContextTooLong) as raised:
            await session.step([70] * 2048)
        assert raised.value.limit == 2048
        same(top, await session.step())
