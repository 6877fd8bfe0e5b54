"""A model behind any OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import orjson

from backends.errors import BackendError, BackendUnavailable, CapabilityMissing, ContextTooLong, RequestRejected
from backends.openai_http.dialects import Dialect, find_dialect
from backends.openai_http.failures import UpstreamStatus, from_event, from_exception, is_missing_route, not_protocol
from backends.openai_http.forwarding import Forwarding, no_completions
from backends.openai_http.http import Body, Upstream
from backends.openai_http.sessions import HTTPSession
from backends.openai_http.settings import OpenAIHTTPSettings
from backends.openai_http.sse import SSEError, SSEParser
from backends.openai_http.texts import TextReader, text_body
from backends.openai_http.vocabulary import read_vocabulary
from backends.openai_http.wire import ChatReader, chat_body
from backends.protocol import Session
from backends.raw import is_raw
from backends.seats import Seats
from backends.secrets import keep_secret
from backends.types import ForwardRequest, Message, TextEnd, TextEvent, TextRequest, Vocabulary


class OpenAIHTTPBackend:
    """A `TokenBackend` over HTTP. Whether it really opens sessions, `why_not_fused` says.

    `TextEnd.usage` holds zeros where the server reports none: what is made of that is its reader's to say.
    vocabulary: the model's, where the caller has it already; otherwise it is read from `settings.vocabulary`.
    """

    def __init__(self, name: str, settings: OpenAIHTTPSettings, *, vocabulary: Vocabulary | None = None) -> None:
        keep_secret([settings.api_key, *settings.headers.values()])
        self._name = name
        self._settings = settings
        self._model = settings.model or name
        self._upstream = Upstream(name, settings)
        self._seats = Seats(name, settings.seats, settings.queue)
        self._vocabulary = vocabulary
        self._dialect: Dialect | None = None
        self._why_not = None if settings.sessions != "off" else "token sessions are switched off for it"
        self._probing = anyio.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def admitted(self) -> int:
        """Streams and sessions that hold a seat now."""
        return self._seats.taken

    @property
    def seats(self) -> Seats:
        """See `backends.protocol.SeatedBackend`."""
        return self._seats

    async def start(self) -> None:
        """Read the configured vocabulary. With `sessions: on`, also ask the server: raises CapabilityMissing with the
        reason where it can't open token sessions, BackendUnavailable where it can't be reached."""
        if self._settings.sessions == "off":
            return
        if self._settings.vocabulary is not None:
            await self.vocabulary()
        if self._settings.sessions == "on":
            await self._speak()

    async def ready(self) -> None:
        """Asks the server for its models, which must come within `connect_timeout`. A server without that route counts as
        ready."""
        try:
            await self._upstream.call("GET", f"{self._settings.api}/models", within=self._settings.connect_timeout)
        except RequestRejected:
            return
        except BackendUnavailable as error:
            if not (isinstance(error.__cause__, UpstreamStatus) and error.__cause__.status == 404):
                raise

    async def aclose(self) -> None:
        await self._upstream.aclose()

    # Text

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        path, write, reader = "chat/completions", chat_body, ChatReader(self._name)
        if is_raw(request.messages):
            path, write, reader = "completions", text_body, TextReader(self._name)
        body = write(self._model, self._settings, request)
        try:
            async with (
                await self._seats.take(),
                self._upstream.stream(f"{self._settings.api}/{path}", body) as answer,
            ):
                events = self._events(answer, reader)
                try:
                    yield events
                finally:
                    await events.aclose()
        except (BackendUnavailable, RequestRejected) as error:
            if path != "completions" or not is_missing_route(error):
                raise
            raise no_completions(self._name) from error

    async def _events(self, answer: Body, reader: ChatReader) -> AsyncGenerator[TextEvent, None]:
        if answer.content_type == "application/json":
            raise await self._unstreamed(answer)
        parser = SSEParser()
        try:
            while not reader.done and (data := await answer.read()):
                for event in parser.feed(data):
                    if delta := reader.read(event):
                        yield delta
            for event in parser.finish():
                if delta := reader.read(event):
                    yield delta
        except SSEError as error:
            raise from_exception(self._name, error) from error
        if reader.finish_reason is None and not reader.done:
            raise BackendUnavailable(self._name, f"The server of model {self._name!r} broke off its answer.")
        if delta := reader.rest():
            yield delta
        if reader.done:
            await answer.drain()
        yield TextEnd(reader.ended_by, reader.usage)

    async def _unstreamed(self, answer: Body) -> BackendError:
        """A JSON body with status 200 where a stream was asked for: an error, or a server that can't stream."""
        data = b""
        while len(data) < 65536 and (part := await answer.read()):
            data += part
        try:
            payload = orjson.loads(data)
        except orjson.JSONDecodeError:
            payload = None
        if isinstance(payload, dict) and payload.get("error"):
            return from_event(self._name, payload)
        return not_protocol(self._name, data.decode(errors="replace"))

    def forward(self, request: ForwardRequest) -> Forwarding:
        """See `backends.protocol.ForwardingBackend`."""
        return Forwarding(self._name, self._model, self._settings, self._upstream, self._seats, request)

    # What some servers have beside chat

    async def embed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `backends.protocol.EmbeddingBackend`."""
        return await self._aside(f"{self._settings.api}/embeddings", fields, "has no embeddings")

    async def tokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `backends.protocol.TokenizerBackend`."""
        return await self._aside(f"{self._settings.root}/tokenize", fields, "does not tell tokens")

    async def detokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `backends.protocol.TokenizerBackend`."""
        return await self._aside(f"{self._settings.root}/detokenize", fields, "does not tell tokens")

    async def _aside(self, url: str, fields: Mapping[str, Any], lacks: str) -> dict[str, Any]:
        async with await self._seats.take():
            try:
                answer = await self._upstream.call("POST", url, {**fields, "model": self._model})
            except (BackendUnavailable, RequestRejected) as error:
                if not is_missing_route(error):
                    raise
                raise CapabilityMissing(self._name, f"The server of model {self._name!r} {lacks}.") from error
        if not isinstance(answer, dict):
            raise not_protocol(self._name, answer)
        if answer.get("error"):
            raise from_event(self._name, answer)
        return answer

    # Tokens

    async def vocabulary(self) -> Vocabulary:
        """From the configured file. Raises CapabilityMissing where none is configured or it can't be read."""
        if self._vocabulary is None:
            path = self._settings.vocabulary
            if path is None:
                raise CapabilityMissing(self._name, f"No vocabulary is configured for model {self._name!r}.")
            try:
                self._vocabulary = await anyio.to_thread.run_sync(read_vocabulary, path, self._settings.end_tokens)
            except (OSError, ValueError) as error:
                raise CapabilityMissing(
                    self._name, f"The vocabulary configured for model {self._name!r} can't be read."
                ) from error
        return self._vocabulary

    async def why_not_fused(self) -> str | None:
        """None if it opens token sessions, else the reason. Asks the server unless the answer is known; an answer that
        may change (it can't be reached now) is not kept. Never raises a BackendError."""
        try:
            await self._speak()
        except CapabilityMissing:
            return self._why_not or "its vocabulary can't be read"
        except BackendError as error:
            return f"its server could not be asked whether it gives token ids ({type(error).__name__})"
        return None

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        if k < 1:
            raise ValueError("k must be at least 1")
        async with await self._seats.take() as seat:
            dialect, vocabulary = await self._speak()
            prompt, limit = await dialect.render(messages)
            if limit is not None and (needed := len(prompt) + (max_tokens or 1)) > limit:
                message = f"Model {self._name!r} can read {limit} tokens; {needed} are needed."
                raise ContextTooLong(self._name, message, tokens=needed, limit=limit)
            most = min(dialect.max_k or len(vocabulary), len(vocabulary))
            parallel = self._settings.score_parallel
            session = HTTPSession(self._name, dialect, prompt, limit, min(k, most), parallel, seat.release, most)
            try:
                yield session
            finally:
                await session.close()

    async def _speak(self) -> tuple[Dialect, Vocabulary]:
        """The server's dialect and the vocabulary. Raises CapabilityMissing for good, other errors for now."""
        async with self._probing:
            if self._why_not is not None:
                raise self._missing(self._why_not)
            if self._dialect is None:
                if self._vocabulary is None and self._settings.vocabulary is None:
                    self._why_not = "no vocabulary is configured for it (`vocabulary`), and its server gives none"
                    raise self._missing(self._why_not)
                vocabulary = await self.vocabulary()
                found = await find_dialect(self._name, self._model, self._settings, self._upstream, vocabulary)
                if isinstance(found, str):
                    self._why_not = found
                    raise self._missing(found)
                self._dialect = found
        return self._dialect, await self.vocabulary()

    def _missing(self, reason: str) -> CapabilityMissing:
        return CapabilityMissing(self._name, f"Model {self._name!r} opens no token sessions: {reason}.")
