"""A hosted model behind the contract of a backend: text only, since services of this kind give no whole distributions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread

from backends.errors import BackendError, BackendUnavailable
from backends.hosted.failures import from_litellm
from backends.hosted.library import load
from backends.hosted.settings import HostedSettings
from backends.openai_http.sse import SSEEvent
from backends.openai_http.wire import ChatReader, messages
from backends.seats import Seats
from backends.secrets import keep_secret
from backends.types import TextEnd, TextEvent, TextRequest

_OURS = frozenset({"model", "messages", "stream", "n", "api_key", "api_base", "base_url", "stream_options", "timeout"})
"""Arguments that no request sets."""


class HostedBackend:
    """A `TextBackend`. Tools, formats and other fields of a request go to litellm as they came; it is asked once, never again."""

    def __init__(self, name: str, settings: HostedSettings) -> None:
        keep_secret([settings.api_key])
        self._name = name
        self._settings = settings
        self._seats = Seats(name, settings.seats, settings.queue)
        self._litellm: Any = None
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def seats(self) -> Seats:
        """See `backends.protocol.SeatedBackend`."""
        return self._seats

    async def start(self) -> None:
        """Imports litellm, which takes seconds. Raises BackendUnavailable without it."""
        if self._litellm is None:
            self._litellm = await anyio.to_thread.run_sync(load, self._name)

    async def ready(self) -> None:
        """Asks nobody: every question to such a service is paid for."""
        if self._closed or self._litellm is None:
            raise BackendUnavailable(self._name, f"Model {self._name!r} is closed.")

    async def aclose(self) -> None:
        self._closed = True

    async def why_not_fused(self) -> str | None:
        """Always the reason."""
        return "hosted services give no whole distributions"

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        await self.ready()
        async with await self._seats.take():
            try:
                answer = await self._litellm.acompletion(**self._arguments(request))
            except Exception as error:  # it raises what its providers' libraries raise
                raise from_litellm(self._litellm, self._name, error) from error
            events = self._events(answer)
            try:
                yield events
            finally:
                await events.aclose()
                with anyio.CancelScope(shield=True):
                    await _close(answer)

    async def _events(self, answer: Any) -> AsyncGenerator[TextEvent, None]:
        reader = ChatReader(self._name)
        try:
            async for chunk in answer:
                if delta := reader.read(SSEEvent(data=chunk.model_dump_json(exclude_none=True))):
                    yield delta
        except BackendError:
            raise
        except Exception as error:  # as above
            raise from_litellm(self._litellm, self._name, error) from error
        # Where a stream just ends, litellm makes an ending up; what the service itself said is kept beside it.
        if reader.finish_reason is None or getattr(answer, "received_finish_reason", True) is None:
            raise BackendUnavailable(self._name, f"The service of model {self._name!r} broke off its answer.")
        if delta := reader.rest():
            yield delta
        yield TextEnd(reader.ended_by, reader.usage)

    def _arguments(self, request: TextRequest) -> dict[str, Any]:
        sampling = request.sampling
        said = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        }
        more = {**self._settings.extra_body, **request.extra}
        return {
            **{key: value for key, value in more.items() if key not in _OURS},
            **{key: value for key, value in said.items() if value is not None},
            "model": self._settings.model,
            "messages": messages(request.messages),
            "api_key": self._settings.api_key,
            "api_base": self._settings.api_base,
            "timeout": self._settings.timeout,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Whoever asks decides whether to ask again: retries of its own would multiply with those.
            "max_retries": 0,
            "num_retries": 0,
        }


async def _close(answer: Any) -> None:
    """Close the connection beneath, which litellm itself leaves to the collector."""
    for stream in (answer, getattr(answer, "completion_stream", None)):
        for name in ("aclose", "close"):
            if (close := getattr(stream, name, None)) is None:
                continue
            try:
                done = close()
                if hasattr(done, "__await__"):
                    await done
            except Exception:  # noqa: BLE001, S110 - it is over already
                pass
            break
