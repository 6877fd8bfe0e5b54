"""A client's request handed to a server as it came, and the answer back."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import orjson

from backends.errors import BackendUnavailable, CapabilityMissing, RequestRejected
from backends.estimate import body_tokens
from backends.openai_http.failures import is_missing_route
from backends.openai_http.http import Body, Upstream
from backends.openai_http.relay import Relay, UsageWanted, whole_answer
from backends.openai_http.settings import OpenAIHTTPSettings
from backends.openai_http.splice import with_fields, with_model
from backends.seats import Seat, Seats
from backends.types import ForwardRequest, Usage

_MAX_TOKENS = ("max_completion_tokens", "max_tokens")
"""The first that is there counts."""
_TOUCHED = frozenset({"stream_options", *_MAX_TOKENS})
_ASK_USAGE = {"stream_options": {"include_usage": True}}


class Forwarding:
    """One request on its way: see `backends.protocol.ForwardingBackend`. Entering takes a seat, asks, and has the status."""

    __slots__ = (
        "_answer",
        "_body",
        "_ended",
        "_model",
        "_relay",
        "_request",
        "_seat",
        "_seats",
        "_upstream",
        "_url",
        "_usage",
    )

    def __init__(
        self,
        name: str,
        model: str,
        settings: OpenAIHTTPSettings,
        upstream: Upstream,
        seats: Seats,
        request: ForwardRequest,
    ) -> None:
        self._model = name
        self._upstream = upstream
        self._seats = seats
        self._request = request
        self._url = f"{settings.api}/{'chat/completions' if request.kind == 'chat' else 'completions'}"
        self._body = forward_body(model, settings, request)
        self._relay: Relay | None = None
        self._usage: Usage | None = None
        self._answer: Body | None = None
        self._seat: Seat | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        request = self._request
        self._seat = await self._seats.take()
        try:
            # A whole answer has its first byte when it is written to its end.
            within = None if request.stream else request.seconds
            self._answer = await self._upstream.ask("POST", self._url, self._body, within, whole=not request.stream)
        except (BackendUnavailable, RequestRejected) as error:
            self._seat.release()
            if request.kind == "chat" or not is_missing_route(error):
                raise
            raise no_completions(self._model) from error
        except BaseException:
            self._seat.release()
            raise
        if request.stream:
            choices = (request.fields.get("n") or 1) * request.prompts
            wanted = usage_wanted(request.fields)
            prompt = body_tokens(len(request.body))
            self._relay = Relay(self._model, request.shown, choices, wanted, prompt, one_call=self._one_call)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._answer is not None:
            self._answer.close()
        if self._seat is not None:
            self._seat.release()

    @property
    def usage(self) -> Usage | None:
        return self._usage if self._relay is None else self._relay.usage

    @property
    def wrote(self) -> bool:
        return self._ended if self._relay is None else self._relay.wrote

    @property
    def over(self) -> bool:
        return self._ended if self._relay is None else self._relay.over

    async def read(self) -> bytes:
        answer, relay = self._answer, self._relay
        assert answer is not None
        if relay is None:
            return await self._whole(answer)
        while not relay.over:
            if relay.failure is not None:
                raise relay.failure
            data = await answer.read()
            if given := relay.feed(data) if data else relay.finish():
                if relay.over:
                    answer.finish()
                return given
        return b""

    @property
    def _one_call(self) -> bool:
        return self._request.fields.get("parallel_tool_calls") is False

    async def _whole(self, answer: Body) -> bytes:
        if self._ended:
            return b""
        prompt = body_tokens(len(self._request.body))
        body = await answer.whole()
        data, self._usage = whole_answer(self._model, self._request.shown, body, prompt, one_call=self._one_call)
        self._ended = True
        return data


def no_completions(model: str) -> CapabilityMissing:
    """The model's server has no such route."""
    return CapabilityMissing(model, f"The server of model {model!r} has no text completions.")


def usage_wanted(fields: Mapping[str, Any]) -> UsageWanted:
    """What a request for a stream says about it."""
    options = fields.get("stream_options")
    if not isinstance(options, dict) or not options.get("include_usage"):
        return "no"
    return "always" if options.get("continuous_usage_stats") else "once"


def forward_body(model: str, settings: OpenAIHTTPSettings, request: ForwardRequest) -> bytes:
    """The body as the server gets it: the client's own bytes where that is possible.

    Other than in them are only: the server's name for the model; token counts are asked for, so that they can be metered;
    `stream_options` only where streaming; one name for the budget of tokens, the one that the settings say; and the settings'
    `extra_body`, which is for chat, where the request has nothing of that name.
    """
    fields = request.fields
    chat = request.kind == "chat"
    if _TOUCHED.isdisjoint(fields) and request.max_tokens is None and not (chat and settings.extra_body):
        told = _ASK_USAGE if request.stream and settings.include_usage else {}
        if (body := _spliced(request.body, model, told)) is not None:
            return body
    budget = settings.max_tokens_field if chat else "max_tokens"
    more = settings.extra_body if chat else {}
    new: dict[str, Any] = {key: value for key, value in more.items() if key not in fields}
    gone: set[str] = set()
    if not (request.stream and settings.include_usage):
        gone |= {"stream_options"} & fields.keys()
    elif "stream_options" not in fields:
        new["stream_options"] = {"include_usage": True}
    elif not fields["stream_options"].get("include_usage"):
        new["stream_options"] = {**fields["stream_options"], "include_usage": True}
    budgets = [key for key in _MAX_TOKENS if key in fields]
    if budgets and budgets != [budget]:
        new[budget] = fields[budgets[0]]
        gone |= {*budgets} - {budget}
    elif not budgets and request.max_tokens is not None:
        new[budget] = request.max_tokens
    if not gone and new.keys().isdisjoint(fields) and (body := _spliced(request.body, model, new)) is not None:
        return body
    return orjson.dumps({**{key: value for key, value in fields.items() if key not in gone}, **new, "model": model})


def _spliced(body: bytes, model: str, new: Mapping[str, Any]) -> bytes | None:
    renamed = with_model(body, orjson.dumps(model))
    return with_fields(renamed, new) if renamed is not None and new else renamed
