"""From a model's settings to its started backend. Each kind of backend is imported when the first model needs it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

from backends.catalog import Entry
from backends.protocol import TextBackend
from gateway.settings import Loaded
from gateway.settings.models import AnyModel, FakeModel, HostedModel, LlamaCppModel, OpenAIModel, ServerModel, VLLMModel
from gateway.weights import ensure

T = TypeVar("T")

_COMMON = frozenset({"backend", *AnyModel.model_fields})


class Builders:
    """Builds the entries of one configuration. Embedded models share its processor cores."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._downloads = anyio.Lock()  # one at a time: side by side they share one line, and their bars one terminal
        self._cores: Any = None

    def following(self, loaded: Loaded) -> Builders:
        """For the next configuration: with the same cores, and in the same line for downloads."""
        following = Builders(loaded)
        following._downloads, following._cores = self._downloads, self._cores
        return following

    async def __call__(self, name: str) -> Entry:
        """The entry of a model, its backend started. Raises BackendError, WeightsError."""
        settings = self._loaded.settings.models[name]
        if isinstance(settings, LlamaCppModel):
            backend = await self._llama_cpp(name, settings)
        elif isinstance(settings, OpenAIModel):
            backend = self._openai(name, settings)
        elif isinstance(settings, VLLMModel):
            backend = self._vllm(name, settings)
        elif isinstance(settings, HostedModel):
            backend = self._hosted(name, settings)
        else:
            backend = self._fake(name, settings)
        try:
            await backend.start()
            return await _entry(backend, settings)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await backend.aclose()
            raise

    def _openai(self, name: str, settings: OpenAIModel) -> TextBackend:
        from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings

        values = _values(settings)
        values["headers"] = {key: value.get_secret_value() for key, value in settings.headers.items()}
        # An empty key is none: `${NAME:-}` is how a configuration says "if there is one".
        values["api_key"] = (settings.api_key.get_secret_value() if settings.api_key is not None else "") or None
        values["end_tokens"] = tuple(settings.end_tokens)
        if settings.vocabulary is not None:
            values["vocabulary"] = str(self._loaded.resolve(settings.vocabulary))
        return OpenAIHTTPBackend(name, OpenAIHTTPSettings(**values))

    def _vllm(self, name: str, settings: VLLMModel) -> TextBackend:
        from backends.vllm import VLLMBackend, VLLMSettings

        values = _server_values(settings)
        values["urls"] = tuple(settings.urls)
        return VLLMBackend(name, VLLMSettings(**values))

    def _hosted(self, name: str, settings: HostedModel) -> TextBackend:
        from backends.hosted import HostedBackend, HostedSettings

        values = _values(settings)
        values["api_key"] = (settings.api_key.get_secret_value() if settings.api_key is not None else "") or None
        return HostedBackend(name, HostedSettings(**values))

    def _fake(self, name: str, settings: FakeModel) -> TextBackend:
        from backends.fake import FakeBackend, FakeSettings

        values = settings.model_dump(exclude=set(_COMMON))
        values["reasoning"] = values.pop("reasoning_text")
        return FakeBackend(name, FakeSettings.from_mapping(values))

    async def _llama_cpp(self, name: str, settings: LlamaCppModel) -> TextBackend:
        from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings

        path = await self._file(settings)
        if self._cores is None:
            self._cores = Cores(self._loaded.settings.threads.cores)
        values = _values(settings)
        del values["weights"]
        values["path"] = str(path)
        if settings.chat_template is not None:
            template = anyio.Path(self._loaded.resolve(settings.chat_template))
            values["chat_template"] = await template.read_text(encoding="utf-8")
        backend: TextBackend = LlamaCppBackend(name, LlamaCppSettings(**values), cores=self._cores)
        return backend

    async def _file(self, settings: LlamaCppModel) -> Path:
        if settings.path is not None:
            return self._loaded.resolve(settings.path)
        assert settings.weights is not None  # held by gateway.settings.check
        async with self._downloads:
            return await _in_daemon_thread(partial(ensure, settings.weights))


async def _entry(backend: TextBackend, settings: AnyModel) -> Entry:
    ask: Callable[[], Awaitable[str | None]] | None = getattr(backend, "why_not_fused", None)
    marks = settings.reasoning
    return Entry(
        backend,
        why_not_fused=await ask() if ask is not None else None,
        reasoning=(marks[0], marks[1]) if marks else None,
        owned_by=settings.owned_by,
        seats=getattr(settings, "seats", None),
        native=isinstance(settings, ServerModel | HostedModel),
    )


def _values(settings: AnyModel) -> dict[str, Any]:
    """The settings that are the backend's own, as they are."""
    return {key: getattr(settings, key) for key in type(settings).model_fields if key not in _COMMON}


def _server_values(settings: ServerModel) -> dict[str, Any]:
    """The same, with secrets uncovered."""
    values = _values(settings)
    values["headers"] = {key: value.get_secret_value() for key, value in settings.headers.items()}
    values["api_key"] = settings.api_key.get_secret_value() if settings.api_key is not None else None
    return values


async def _in_daemon_thread(call: Callable[[], T]) -> T:
    """Like `anyio.to_thread.run_sync`, but the process may end while it is at it: a download is taken up again later."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 - handed to whoever waits
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="weights", daemon=True).start()
    return await future
