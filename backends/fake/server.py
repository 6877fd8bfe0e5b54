"""A fake model behind HTTP, as the servers that the gateway meets would serve it.

    python -m backends.fake.server --port 8001 --name alpha --answer "{last}? Forty-two." [--dialect llama.cpp]

Speaks chat completions (streamed and not), completions of texts and of token ids with log-probabilities, embeddings,
`/v1/models`, and of its dialect what token sessions need: vLLM's `/tokenize`, or llama.cpp's `/apply-template`, `/tokenize`,
`/props`. For tests of the HTTP backend, for load tests without a model, and for trying the gateway on a laptop. It is no model
server: it binds to the loopback unless told otherwise and knows one request field in ten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import orjson
from aiohttp import web

from backends.errors import (
    BackendAuthFailed,
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    ContextTooLong,
    RequestRejected,
)
from backends.fake.backend import FakeBackend
from backends.fake.model import cut, logs
from backends.fake.settings import FakeSettings
from backends.fake.text_routes import TextRoutes
from backends.types import Message, Sampling, TextDelta, TextRequest

Dialect = Literal["vllm", "llama.cpp", "plain"]

_STATUS: Mapping[type[BackendError], int] = {
    BackendAuthFailed: 401,
    BackendOverloaded: 503,
    BackendTimeout: 504,
    ContextTooLong: 400,
    RequestRejected: 400,
}


_UNREADABLE = (AttributeError, KeyError, IndexError, TypeError, ValueError)
"""What comes of taking a field for something that it is not. It knows few fields, and checks none of them."""


class FakeServer:
    """`async with FakeServer(backend) as server: server.base_url`.

    dialect: whose extras it has; "plain": chat completions only. key: the bearer token it wants, if any. max_logprobs: most
    per position. requests: path and body of every POST so far, for tests; connections are counted by the backend's
    counters, as streams.
    """

    def __init__(
        self,
        backend: FakeBackend,
        *,
        dialect: Dialect = "vllm",
        key: str | None = None,
        max_logprobs: int = 20,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.backend = backend
        self.model = backend.model
        self._texts = TextRoutes(backend)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[Mapping[str, str]] = []
        self._dialect = dialect
        self._key = key
        self._max_logprobs = max_logprobs
        self._address = host, port
        # handler_cancellation: a client that leaves ends its request at once, as in vLLM.
        self._runner = web.AppRunner(self._app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address).start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self._dialect != "plain":
            app.router.add_post("/v1/completions", self._completions)
            app.router.add_post("/tokenize", self._tokenize)
            app.router.add_post("/v1/embeddings", self._texts.embeddings)
        if self._dialect == "vllm":
            app.router.add_post("/detokenize", self._texts.detokenize)
        if self._dialect == "llama.cpp":
            app.router.add_post("/apply-template", self._template)
            app.router.add_get("/props", self._props)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """The key, the record, and errors as OpenAI bodies."""
        self.headers.append(dict(request.headers))
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            return _error(401, "Invalid API key")
        try:
            if request.method == "POST":
                self.requests.append((request.path, orjson.loads(await request.read())))
            response: web.StreamResponse = await handler(request)
        except BackendError as error:
            return self._failed(error)
        except ConnectionResetError:
            return web.Response(status=499)  # the client left; it will not see this
        except _UNREADABLE as error:
            return _error(400, f"not a request that this server can read: {error}")
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        return response

    def _failed(self, error: BackendError) -> web.Response:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        response = _error(status, error.message)
        if isinstance(error, ContextTooLong):
            words = f"This model's maximum context length is {error.limit} tokens. However, you requested {error.tokens} tokens."
            response = _error(status, words, code="context_length_exceeded")
        if isinstance(error, BackendOverloaded) and error.retry_after is not None:
            response.headers["Retry-After"] = str(int(error.retry_after))
        return response

    # The OpenAI API

    async def _models(self, request: web.Request) -> web.Response:
        await self.backend.ready()
        listed = {"id": self.backend.name, "object": "model", "created": 0, "owned_by": "fake"}
        return _json({"object": "list", "data": [listed]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        async with self.backend.stream(_text_request(body)) as events:
            # A failure before the first event is an HTTP status: peek before the headers are sent.
            first = await anext(events)
            if not body.get("stream"):
                parts = [first, *[event async for event in events]]
                return _json(self._whole(parts))
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            try:
                await response.write(self._event({"role": "assistant", "content": ""}))
                event = first
                while isinstance(event, TextDelta):
                    delta = {"content": event.text} if event.text else {"reasoning_content": event.reasoning}
                    await response.write(self._event(delta))
                    event = await anext(events)
                await response.write(self._event({}, event.finish_reason))
                if usage:
                    await response.write(_sse(self._chunk([], _usage(event.usage))))
                await response.write(b"data: [DONE]\n\n")
            except BackendError as error:
                await response.write(_sse({"error": {"message": error.message, "type": "server_error", "code": 500}}))
            await response.write_eof()
            return response

    def _whole(self, events: list[Any]) -> dict[str, Any]:
        end = events.pop()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(event.text for event in events),
            "refusal": None,
        }
        if reasoning := "".join(event.reasoning for event in events):
            message["reasoning_content"] = reasoning
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish_reason}
        return {**self._chunk([choice], _usage(end.usage)), "object": "chat.completion"}

    def _event(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _sse(self._chunk([{"index": 0, "delta": delta, "finish_reason": finish}]))

    def _chunk(self, choices: list[Any], usage: dict[str, int] | None = None) -> dict[str, Any]:
        head = {"id": "fake-1", "object": "chat.completion.chunk", "created": 0, "model": self.backend.name}
        return {**head, "choices": choices, **({"usage": usage} if usage else {})}

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        """Text; or one token after a prompt of ids, with log-probabilities by id: what token sessions ask for."""
        body = orjson.loads(await request.read())
        if "return_tokens_as_token_ids" not in body and "n_probs" not in body:
            return await self._texts.completions(request)
        ids, k = body["prompt"], body["logprobs"]
        if any(not 0 <= id < len(self.model) for id in ids):
            raise RequestRejected(self.backend.name, "a token id is out of vocabulary")
        limit = self.backend.settings.context
        if len(ids) + 1 > limit:
            raise ContextTooLong(self.backend.name, "too long", len(ids) + 1, limit)
        wanted = body.get("logprob_token_ids") or []
        if self._dialect == "vllm" and max(k, len(wanted)) > self._max_logprobs:
            raise RequestRejected(self.backend.name, f"Requested sample logprobs of {k}, which is too many")
        # A pass of a session, so that delays, faults, seats and counters of the backend hold here too.
        async with self.backend.open(self.model.messages(ids), k=1) as session:
            await session.step()
        probabilities = self.model.distribution(ids)
        top = cut(probabilities, max(k, 1))
        listed = dict(zip(top.ids.tolist(), top.logprobs.tolist(), strict=True))
        if self._dialect == "llama.cpp":
            return self._llama_cpp(listed, probabilities, body)
        chosen = next(iter(listed))
        if wanted and self.backend.settings.lookup:
            values = logs(probabilities[np.array(wanted)]).tolist()
            listed = {chosen: listed[chosen]} | dict(zip(wanted, values, strict=True))
        named = {f"token_id:{id}": max(value, -9999.0) for id, value in listed.items()}
        logprobs = {"tokens": [f"token_id:{chosen}"], "token_logprobs": [listed[chosen]], "top_logprobs": [named]}
        return _json(self._completion(logprobs, len(ids)))

    def _llama_cpp(self, listed: dict[int, float], probabilities: Any, body: dict[str, Any]) -> web.Response:
        biased = {int(id): float(bias) for id, bias in body.get("logit_bias") or []}
        chosen = max(biased, key=biased.__getitem__, default=next(iter(listed)))
        if not _is_text(self.model.vocabulary.tokens[chosen]):
            # llama.cpp writes on until the character is whole and forgets the half one's probabilities.
            chosen, listed = 32, {32: float(logs(probabilities[32:33])[0])}
        entries = [{"id": id, "token": "?", "bytes": [], "logprob": value} for id, value in listed.items()]
        value = float(logs(probabilities[chosen : chosen + 1])[0])
        content = {"id": chosen, "token": "?", "bytes": [], "logprob": value, "top_logprobs": entries}
        return _json(self._completion({"content": [content]}, len(body["prompt"])))

    def _completion(self, logprobs: dict[str, Any], tokens: int) -> dict[str, Any]:
        choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length"}
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        return {
            "id": "fake-1",
            "object": "text_completion",
            "model": self.backend.name,
            "choices": [choice],
            "usage": usage,
        }

    # The dialects

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        if self._dialect == "llama.cpp":
            return _json({"tokens": json.loads(body["content"]) if body.get("content") else []})
        if "prompt" in body:
            return _json(self._texts.tokens(body))
        ids = self.model.render(_messages(body))
        return _json({"count": len(ids), "max_model_len": self.backend.settings.context, "tokens": ids})

    async def _template(self, request: web.Request) -> web.Response:
        # The "text" of a fake prompt is the list of its ids: its control ids have no text of their own.
        return _json({"prompt": json.dumps(self.model.render(_messages(orjson.loads(await request.read()))))})

    async def _props(self, request: web.Request) -> web.Response:
        return _json({"default_generation_settings": {"n_ctx": self.backend.settings.context}})


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(str(turn.get("role")), str(turn.get("content") or "")) for turn in body["messages"])


def _text_request(body: Mapping[str, Any]) -> TextRequest:
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return TextRequest(_messages(body), Sampling(max_tokens=body.get("max_tokens"), stop=stops))


def _usage(usage: Any) -> dict[str, int]:
    read, written = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _sse(payload: Any) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _json(payload: Any) -> web.Response:
    return web.Response(body=orjson.dumps(payload), content_type="application/json")


def _error(status: int, message: str, code: str | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


async def _serve(arguments: argparse.Namespace) -> None:
    settings = FakeSettings(answer=arguments.answer, first_delay=arguments.first_delay, delay=arguments.delay)
    backend = FakeBackend(arguments.name, settings)
    async with FakeServer(backend, dialect=arguments.dialect, host=arguments.host, port=arguments.port) as server:
        sys.stdout.write(f"{server.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m backends.fake.server", description="A scripted model over HTTP.")
    parser.add_argument("--name", default="fake")
    parser.add_argument("--answer", default=FakeSettings().answer, help="{name} and {last} are filled in")
    parser.add_argument("--dialect", choices=("vllm", "llama.cpp", "plain"), default="vllm")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0: any free one")
    parser.add_argument("--first-delay", type=float, default=0.0, help="seconds before the first token")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every other token")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
