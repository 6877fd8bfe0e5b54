"""A gateway whose configuration is a file that tests rewrite and reload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from edge import CHAT, Edge, Exchange, Reply, question

from backends.catalog import Entry
from backends.errors import BackendUnavailable
from backends.fake import FakeBackend, FakeSettings
from gateway.app import Application
from gateway.reload import Reloader, first_generation, open_reloader
from gateway.runtime import open_runtime
from gateway.settings import Loaded, load


class Counting(FakeBackend):
    """Knows when it was closed, and whether somebody was using it then."""

    closed = False
    torn = False

    async def aclose(self) -> None:
        counters = self.counters
        self.torn = self.torn or bool(counters.streams + counters.sessions)
        self.closed = True
        await super().aclose()


class Builder:
    """Builds fakes, and remembers them. broken: names that can't be started."""

    def __init__(self, loaded: Loaded, built: list[Counting], broken: set[str]) -> None:
        self.loaded = loaded
        self.built = built
        self.broken = broken

    async def __call__(self, name: str) -> Entry:
        settings = self.loaded.settings.models[name]
        backend = Counting(name, FakeSettings(answer=settings.answer, delay=settings.delay))  # type: ignore[union-attr]
        await anyio.lowlevel.checkpoint()
        if name in self.broken:
            raise BackendUnavailable(name, f"Model {name!r} does not start.")
        self.built.append(backend)
        return Entry(backend)

    def following(self, loaded: Loaded) -> Builder:
        return Builder(loaded, self.built, self.broken)


@dataclass
class World:
    file: Path
    reloader: Reloader
    built: list[Counting]
    broken: set[str]

    def exchange(self, model: str = "b", **fields: object) -> Exchange:
        switch: Any = self.reloader.switch
        return Edge(switch, switch.current.runtime, {}).exchange("POST", CHAT, question(model, **fields))

    async def chat(self, model: str = "b", **fields: object) -> Reply:
        with anyio.fail_after(10):
            return await self.exchange(model, **fields).run()

    def open(self, name: str) -> list[Counting]:
        return [backend for backend in self.built if backend.name == name and not backend.closed]


def config(b: str = "one", more: str = "", delay: float = 0.0) -> str:
    return f"""\
models:
  a: {{backend: fake, answer: "a says so"}}
  b: {{backend: fake, answer: "{b}", delay: {delay}}}
{more}
"""


@asynccontextmanager
async def world(
    tmp_path: Path, text: str = config(), host: str = "127.0.0.1", broken: Collection[str] = ()
) -> AsyncIterator[World]:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    loaded = load(file)
    built: list[Counting] = []
    cant = set(broken)
    build = Builder(loaded, built, cant)
    async with open_runtime(loaded, build) as runtime:
        await runtime.wait_loaded()
        first = first_generation(loaded, runtime, Application(runtime), build)
        async with open_reloader(first, host) as reloader:
            yield World(file, reloader, built, cant)
    assert [backend.name + backend.settings.answer for backend in built if not backend.closed] == [], "left open"
    assert not any(backend.torn for backend in built), "something was closed while it was in use"
