"""POST /v1/completions: a text is continued.

What continues it depends on the wiring:
    one model behind a server of its own   that server's completions; the request goes there as it came
    one model in this process              reads the prompt as it is, without its chat template
    every other wiring                     reads the prompt as a user's message: its stages talk to each other in messages
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson

from backends.errors import BackendError, CapabilityMissing
from backends.protocol import ForwardingBackend, RawBackend
from backends.raw import raw_ids, raw_prompt, raw_text
from backends.types import Message, Usage, Vocabulary
from gateway.observability.metrics import Metrics
from gateway.observability.record import RequestRecord
from gateway.runtime import Prepared, Runtime
from gateway.web.admission import Admission
from gateway.web.answering import Answering, Sink, Stream, Whole
from gateway.web.asgi import Receive, Scope, Send
from gateway.web.attempts import Attempts
from gateway.web.chat import ChatRoute, identity_of
from gateway.web.forwarding import Forwarder
from gateway.wire import sse
from gateway.wire.answers import Piece
from gateway.wire.completions import (
    CompletionRequest,
    LegacyLogprobs,
    Prompt,
    TextChunkWriter,
    check_text_forwardable,
    completion_value,
    decode_completion,
    joined,
    text_choice,
)
from gateway.wire.decode import ChatRequest
from gateway.wire.errors import APIError, bad_request, unsupported, unsupported_endpoint
from gateway.wire.fields import Fields
from strategies.engine.events import BranchReport, Delta, Event, Finished, StageFinished, StageReport
from strategies.engine.scoring import score_prompt
from strategies.planning.plan import branches
from strategies.routing import Alias


class TextForwarder(Forwarder):
    """Hands on what is for one model with a server of its own."""

    kind = "text"

    def _check(self, fields: Fields) -> int:
        return check_text_forwardable(fields, self._limits)

    def _said(self, fields: Fields) -> Any:
        return fields.get("prompt", "")

    def _is_told(self, alias: Alias) -> bool:
        return False  # a text is no conversation: there is nothing to put a template around


class CompletionsRoute(ChatRoute):
    """Answers requests for completions."""

    def __init__(self, runtime: Runtime, metrics: Metrics, admission: Admission) -> None:
        super().__init__(runtime, metrics, admission)
        self._forwarder = TextForwarder(runtime, metrics, admission, self._limits)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            await super()._answer(scope, receive, send, record)
        except APIError as error:
            if isinstance(error.__cause__, CapabilityMissing):
                raise unsupported_endpoint(error.message) from error
            raise

    def _decode(self, body: bytes) -> ChatRequest:
        return decode_completion(body, self._limits)

    async def _fitted(self, request: ChatRequest, prepared: Prepared) -> ChatRequest:
        assert isinstance(request, CompletionRequest)
        backend = self._runtime.catalog[prepared.plan.models[0]].backend
        if self._on_server(prepared):
            prompts = [_for_server(prompt) for prompt in request.prompts]
        elif prepared.plan.shape == "single" and isinstance(backend, RawBackend):
            prompts = [await _raw(backend, prompt, index) for index, prompt in enumerate(request.prompts)]
        else:
            if request.echo and request.asked.logprobs is not None:
                raise unsupported("echo", "Log-probabilities of a prompt can only be told by a single model.")
            prompts = [await self._as_message(prepared, prompt) for prompt in request.prompts]
        messages = tuple(Message("user", prompt.text or "") for prompt in prompts)
        return replace(request, prompts=tuple(prompts), messages=messages)

    def _on_server(self, prepared: Prepared) -> bool:
        """Whether the whole wiring is one model whose own server continues texts."""
        entry = self._runtime.catalog[prepared.plan.models[0]]
        return prepared.plan.shape == "single" and entry.native and isinstance(entry.backend, ForwardingBackend)

    async def _as_message(self, prepared: Prepared, prompt: Prompt) -> Prompt:
        text = prompt.text
        if prompt.ids is not None:
            vocabulary = await self._one_vocabulary(prepared)
            text = _decoded(_checked(prompt.ids, len(vocabulary), "prompt"), vocabulary)
        assert text is not None
        return Prompt(text, prompt.ids, (Message("user", text),))

    async def _one_vocabulary(self, prepared: Prepared) -> Vocabulary:
        """The one that token ids can be meant in. Raises APIError (400) where there are several, or none."""
        found: dict[str, Vocabulary] = {}
        for model in prepared.plan.models:
            backend = self._runtime.catalog[model].token_backend()
            try:
                vocabulary = None if backend is None else await backend.vocabulary()
            except BackendError:
                vocabulary = None
            if vocabulary is None:
                raise unsupported("prompt", f"Token ids mean nothing here: the vocabulary of {model!r} is not known.")
            found[vocabulary.fingerprint] = vocabulary
        if len(found) > 1:
            raise unsupported(
                "prompt", "Token ids mean nothing here: the models of this wiring have different tokenizers."
            )
        return next(iter(found.values()))

    async def _run_choices(
        self, request: ChatRequest, prepared: Prepared, sink: Sink, attempts: Attempts
    ) -> Exception | None:
        failure = await super()._run_choices(request, prepared, sink, attempts)
        if isinstance(failure, CapabilityMissing) and self._on_server(prepared):
            return unsupported_endpoint(failure.message)
        return failure

    @asynccontextmanager
    async def _events(
        self, choice: int, request: ChatRequest, prepared: Prepared
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """An echo is the first text of the answer."""
        assert isinstance(request, CompletionRequest)
        prompt = request.prompt_of(choice)
        before: list[Event] = []
        end: Delta | None = None
        there = self._on_server(prepared)
        if request.echo and there:
            extra = {**prepared.options.extra, "echo": True}
            prepared = replace(prepared, options=replace(prepared.options, extra=extra))
        elif request.echo:
            echo, end = await self._echo(prompt, request, prepared)
            before.append(echo)
        if request.sampling.max_tokens == 0 and not there:
            async with aclosing(_nothing(before, prompt, prepared)) as events:
                yield events
            return
        one = replace(request, messages=prompt.conversation)
        async with (
            super()._events(choice, one, prepared) as written,
            aclosing(_after(before, written, end)) as events,
        ):
            yield events

    async def _echo(self, prompt: Prompt, request: CompletionRequest, prepared: Prepared) -> tuple[Delta, Delta | None]:
        """The prompt; and where its tokens are told, what stands for an answer that ends at once."""
        last = len(prepared.plan.stages) - 1
        if request.asked.logprobs is None:
            return Delta(last, prompt.text or ""), None
        backend = self._runtime.catalog[prepared.plan.models[0]].token_backend()
        ids = raw_ids(prompt.conversation)
        if backend is None or ids is None:
            raise CapabilityMissing(prepared.plan.models[0], "Log-probabilities of a prompt can't be told here.")
        scored = await score_prompt(backend, ids, request.asked.logprobs)
        return Delta(last, prompt.text or "", tokens=scored.tokens), Delta(last, "", tokens=(scored.end,))

    def _sink(self, scope: Scope, send: Send, request: ChatRequest, prepared: Prepared, record: RequestRecord) -> Sink:
        identity = replace(identity_of(request, prepared), id=f"cmpl-{uuid.uuid4().hex}")
        common = (identity, prepared, request, record)
        return (CompletionStream if request.stream else CompletionWhole)(scope, send, *common)


class CompletionWhole(Whole):
    """One JSON body at the end."""

    async def end(self) -> None:
        choices = []
        for index, (pieces, end) in enumerate(zip(self._pieces, self.finished(), strict=True)):
            said = [piece for piece in pieces if not piece.reasoning]
            text = "".join(piece.text for piece in said)
            teller = _Teller(self)
            told = [value for piece in said if (value := teller.tell(piece)) is not None]
            logprobs = joined(told) if told or (self.logprobs is not None and not text) else None
            choices.append(text_choice(index, text, logprobs, self.finish_reason(end)))
        body = completion_value(
            id=self.identity.id,
            created=self.identity.created,
            model=self.identity.model,
            fingerprint=self.identity.fingerprint,
            choices=choices,
            usage=self.usage(),
            extension=self.extension(range(len(choices))),
        )
        await self.deliver(orjson.dumps(body), self.degraded())


class CompletionStream(Stream):
    """Server-sent events, as chunks of text."""

    def __init__(self, scope: Scope, send: Send, *common: Any) -> None:
        super().__init__(scope, send, *common)
        identity = self.identity
        self._texts = TextChunkWriter(
            id=identity.id,
            created=identity.created,
            model=identity.model,
            fingerprint=identity.fingerprint,
            with_usage=self.request.include_usage,
        )
        self._tellers = [_Teller(self) for _ in self.choices]

    def _piece(self, choice: int, piece: Piece) -> bytes:
        if piece.reasoning:
            return b""  # there is no place for it
        self.record.wrote()
        return self._texts.text(choice, piece.text, self._tellers[choice].tell(piece))

    def _tell_spent(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> None:
        self._texts.spent(usage, extension)

    def _introduce(self, choice: int) -> bytes:
        return b""

    def _finish(self, choice: int, end: Finished) -> bytes:
        extension = None if self._texts.with_usage else self.extension([choice])
        return self._texts.finish(choice, self.finish_reason(end), extension)

    async def end(self) -> None:
        usage, data = self.usage(), b""
        if self._texts.with_usage:
            data = self._texts.usage(usage, self.extension(range(len(self.choices))))
        await self._write(data + sse.DONE, more=False)


class _Teller:
    """Log-probabilities of one choice, in the older form."""

    def __init__(self, sink: Answering) -> None:
        assert isinstance(sink.request, CompletionRequest)
        asked = sink.request.asked.logprobs
        self._legacy = None if asked is None else LegacyLogprobs(asked)
        self._first = sink.request.echo

    def tell(self, piece: Piece) -> Any:
        """None where none are asked for, or none are told of this text."""
        if self._legacy is None:
            return None
        first, self._first = self._first, False
        if piece.text and not piece.tokens:
            return None
        return self._legacy.values(piece.tokens, first_unknown=first)


async def _raw(backend: RawBackend, prompt: Prompt, index: int) -> Prompt:
    """A prompt as a model of this process reads it: at least one token."""
    vocabulary = await backend.vocabulary()
    if prompt.ids is None:
        assert prompt.text is not None
        ids = await backend.encode(prompt.text) or [
            min(vocabulary.end_ids)
        ]  # the end of a text is the beginning of the next
        return Prompt(prompt.text, tuple(ids), raw_prompt(ids))
    ids = list(_checked(prompt.ids, len(vocabulary), f"prompt[{index}]"))
    return Prompt(_decoded(ids, vocabulary), prompt.ids, raw_prompt(ids))


def _for_server(prompt: Prompt) -> Prompt:
    if prompt.ids is None:
        assert prompt.text is not None
        return replace(prompt, conversation=raw_text(prompt.text))
    return replace(prompt, conversation=raw_prompt(prompt.ids))


def _checked(ids: Sequence[int], size: int, name: str) -> Sequence[int]:
    for id in ids:
        if not 0 <= id < size:
            raise bad_request(f"{name} must hold token ids of the model, from 0 to {size - 1}, not {id}.", name)
    return ids


def _decoded(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    return b"".join(vocabulary.tokens[id] for id in ids).decode(errors="replace")


async def _after(
    before: Sequence[Event], events: AsyncIterator[Event], end: Delta | None
) -> AsyncGenerator[Event, None]:
    """end: told where nothing else is. Who scores texts takes the last token for the one that was written, and drops it."""
    for event in before:
        yield event
    async for event in events:
        if isinstance(event, Delta):
            end = None
        elif isinstance(event, StageFinished) and end is not None:
            yield end
        yield event


async def _nothing(before: Sequence[Event], prompt: Prompt, prepared: Prepared) -> AsyncGenerator[Event, None]:
    """A run that writes nothing, for a budget of no tokens."""
    for event in before:
        yield event
    usage = Usage(len(raw_ids(prompt.conversation) or ()), 0)
    last = len(prepared.plan.stages) - 1
    reports = tuple(BranchReport(branch.model, branch.role, usage) for branch in branches(prepared.plan.stages[last]))
    report = StageReport(last, reports, 0.0, None, "length")
    yield StageFinished(report)
    yield Finished("length", usage, (report,))
