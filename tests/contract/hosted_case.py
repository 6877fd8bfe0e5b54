"""A hosted model, asked by litellm, at a server of OpenAI's API on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract_cases import Knobs, Running, _settings

from backends.fake import FakeBackend
from backends.fake.server import FakeServer
from backends.hosted import HostedBackend, HostedSettings


class HostedCase:
    draft_atol = 0.0
    scripted = True
    max_k: int | None = None

    @asynccontextmanager
    async def run(self, name: str, knobs: Knobs) -> AsyncIterator[Running]:
        behind = FakeBackend("upstream", _settings(Knobs(**{**vars(knobs), "seats": None})))
        async with FakeServer(behind, dialect="plain", key="sk-hosted") as server:
            settings = HostedSettings(
                "openai/upstream", api_key="sk-hosted", api_base=server.base_url, seats=knobs.seats, queue=knobs.queue
            )
            backend = HostedBackend(name, settings)
            await backend.start()
            yield Running(backend, lambda: behind.counters.streams + backend.seats.taken)  # type: ignore[arg-type]
            await backend.aclose()
