"""The backends that the contract suite runs over, each behind the same handful of knobs.

Single steps to the same position must agree to the last bit in all of them, whatever path led there. A scored draft may differ
from single steps, by backend (`draft_atol`, nats; a tenth of it in probability):
    fake             0: its law is a pure function of the history.
    openai_http      0 here, because its server is the fake; a real server's batches change the last bits of every step.
    llama_cpp        0: a draft is read token by token. With `batching: fast` 0.5: it is one pass, whose quantised matrix products
                     round otherwise than those of single steps (seen: 0.2 for tokens of probability 0.0002)
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from backends.fake import FakeBackend, FakeModel, FakeSettings, Fault
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.openai_http.tokenizer_json import BYTE_OF_CHARACTER
from backends.protocol import TokenBackend
from backends.types import Message
from backends.wrappers import Guard, Policy, guarded

ANSWER = "The answer is 42 because 中国 has 两 🎉 and naïve words.\nThat is the whole of it."


@dataclass(frozen=True)
class Knobs:
    """What a test may ask of a backend. A real model writes its own text, at its own pace."""

    answer: str = ANSWER
    delay: float = 0.0
    seats: int | None = None
    queue: int = 0
    context: int = 4096
    faults: tuple[Fault, ...] = ()


@dataclass
class Running:
    """A started backend. busy: streams and sessions that something still holds for it, anywhere."""

    backend: TokenBackend
    busy: Callable[[], int]
    prompt: Sequence[Message] = field(default_factory=lambda: (Message("user", "What is six times seven?"),))


class Case(Protocol):
    """draft_atol: see the module. scripted: it says the knob's answer and fails as told. max_k: most that a TopK lists."""

    draft_atol: float
    scripted: bool
    max_k: int | None

    def run(self, name: str, knobs: Knobs) -> AbstractAsyncContextManager[Running]: ...


class FakeCase:
    """kept_steps: of its settings."""

    draft_atol = 0.0
    scripted = True
    max_k: int | None = None

    def __init__(self, kept_steps: int = 0) -> None:
        self.kept_steps = kept_steps

    @asynccontextmanager
    async def run(self, name: str, knobs: Knobs) -> AsyncIterator[Running]:
        backend = FakeBackend(name, replace(_settings(knobs), kept_steps=self.kept_steps))
        await backend.start()

        def busy() -> int:
            counters = backend.counters
            return counters.streams + counters.sessions + counters.waiting

        yield Running(backend, busy)
        await backend.aclose()


class HTTPCase:
    """Over a real connection to a server on the loopback that speaks vLLM's or llama.cpp's dialect."""

    draft_atol = 0.0
    scripted = True

    def __init__(self, dialect: str, directory: Path) -> None:
        self.dialect = dialect
        self.directory = directory
        self.max_k = 20 if dialect == "vllm" else None

    @asynccontextmanager
    async def run(self, name: str, knobs: Knobs) -> AsyncIterator[Running]:
        # The seats are the client's here; the server takes all that comes.
        behind = FakeBackend("upstream", _settings(Knobs(**{**vars(knobs), "seats": None})))
        model = behind.model
        write_tokenizer(model, self.directory)
        async with FakeServer(behind, dialect=self.dialect) as server:  # type: ignore[arg-type]
            settings = OpenAIHTTPSettings(
                base_url=server.base_url,
                model="upstream",
                seats=knobs.seats,
                queue=knobs.queue,
                sessions="on",
                vocabulary=str(self.directory),
            )
            backend = OpenAIHTTPBackend(name, settings)
            await backend.start()

            def busy() -> int:
                counters = behind.counters
                return counters.streams + counters.sessions + backend.admitted

            yield Running(backend, busy)
            await backend.aclose()


class GuardedCase:
    """Another case's backend, guarded. hedge: its streams are asked for a second time where they are slow."""

    def __init__(self, bare: Case, hedge: float | None = None) -> None:
        self.bare = bare
        self.hedge = hedge
        self.draft_atol, self.scripted, self.max_k = bare.draft_atol, bare.scripted, bare.max_k

    @asynccontextmanager
    async def run(self, name: str, knobs: Knobs) -> AsyncIterator[Running]:
        async with self.bare.run(name, knobs) as running:
            backend = guarded(running.backend, Guard(name, Policy(hedge_after=self.hedge)))
            assert isinstance(backend, TokenBackend)
            yield replace(running, backend=backend)


class LlamaCppCase:
    """A real model in this process. What it says and how fast is its own; seats, queue and context are the knobs'."""

    scripted = False
    max_k: int | None = None

    def __init__(self, weights: Path, batching: Literal["exact", "fast"] = "exact") -> None:
        self.weights = weights
        self.batching: Literal["exact", "fast"] = batching
        self.draft_atol = 0.0 if batching == "exact" else 0.5

    @asynccontextmanager
    async def run(self, name: str, knobs: Knobs) -> AsyncIterator[Running]:
        from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings

        settings = LlamaCppSettings(
            path=str(self.weights),
            context=min(knobs.context, 1024),
            seats=knobs.seats or 4,
            queue=knobs.queue,
            batching=self.batching,
        )
        backend = LlamaCppBackend(name, settings, Cores(1))
        await backend.start()

        def busy() -> int:
            stats = backend.stats()
            return stats.used + stats.waiting

        try:
            yield Running(backend, busy, (Message("user", "Write a long story about a river and its fish."),))
        finally:
            await backend.aclose()


def _settings(knobs: Knobs) -> FakeSettings:
    return FakeSettings(
        answer=knobs.answer,
        delay=knobs.delay,
        first_delay=knobs.delay,
        seats=knobs.seats,
        queue=knobs.queue,
        context=knobs.context,
        faults=knobs.faults,
    )


def write_tokenizer(model: FakeModel, directory: Path) -> None:
    """The fake model's vocabulary as a byte-level tokenizer.json with its ends named beside it."""
    character = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    tokens = model.vocabulary.tokens
    vocab = {"".join(character[byte] for byte in token): id for id, token in enumerate(tokens) if token}
    control = [id for id, token in enumerate(tokens) if not token]
    data = {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]},
        "added_tokens": [{"id": id, "content": f"<|{id}|>", "special": True} for id in control],
    }
    (directory / "tokenizer.json").write_text(json.dumps(data))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": list(model.ends)}))
