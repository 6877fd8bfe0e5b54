"""Embedded models on real weights, for the tests of the backend. A test is skipped where its weights have not been pulled."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
import pytest

from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings
from backends.protocol import Session
from backends.types import Message, TopK

FILES = {
    "smol": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma": "gemma-3-270m.Q4_K_M.gguf",
    "qwen": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
}
CORES = Cores()
QUESTION = (Message("user", "Name three colours of the rainbow, then say 你好 and 🎉."),)
LONG = (Message("user", "Sing the song of the sheep again. " * 36),)


def weights(name: str) -> str:
    home = Path(os.environ.get("MODELNET_HOME") or Path.home() / ".cache" / "modelnet")
    file = home / "models" / FILES[name]
    if not file.exists():
        pytest.skip(f"the weights {FILES[name]} are not in {home / 'models'}")
    return str(file)


@asynccontextmanager
async def running(name: str = "smol", **settings: object) -> AsyncIterator[LlamaCppBackend]:
    """A started backend; afterwards nothing of it may be left."""
    settings = {"context": 1024, **settings}
    backend = LlamaCppBackend(name, LlamaCppSettings(weights(name), **settings), CORES)  # type: ignore[arg-type]
    await backend.start()
    assert backend._engine is not None
    worker = backend._engine.worker
    try:
        yield backend
        with anyio.fail_after(5):
            while backend.stats().used or backend.stats().waiting:
                await anyio.sleep(0.005)
    finally:
        await backend.aclose()
    assert worker._thread not in threading.enumerate()
    assert CORES.free == CORES.total


async def greedy(session: Session, n: int) -> list[tuple[int, TopK]]:
    found: list[tuple[int, TopK]] = []
    for _ in range(n):
        top = await session.step([found[-1][0]] if found else [])
        found.append((int(top.ids[0]), top))
    return found


def assert_equal(one: TopK, other: TopK) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.logprobs, other.logprobs)
    assert one.outside == other.outside


class Failing:
    """llama.cpp, but computing fails."""

    def __init__(self, library: object) -> None:
        self._library = library

    def __getattr__(self, name: str) -> object:
        return (lambda *_: -3) if name == "llama_decode" else getattr(self._library, name)
