"""What the fake server has beside chat and sessions: scripted text completions, embeddings, tokens of texts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from backends.errors import BackendError, RequestRejected
from backends.fake.backend import FakeBackend
from backends.fake.model import FakeModel, cut
from backends.raw import raw_prompt
from backends.types import Sampling, TextDelta, TextEnd, TextRequest, Usage

DIMENSIONS = 8


@dataclass(slots=True)
class _Choice:
    """One answer in the making. ids: the history so far, for log-probabilities. at: characters so far."""

    index: int
    ids: list[int]
    at: int = 0


class TextRoutes:
    """Handlers over one fake backend."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._model: FakeModel = backend.model

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Every prompt n times. `logprobs`, `echo`, `stop`, `max_tokens` and streams as OpenAI has them."""
        body = orjson.loads(await request.read())
        if body.get("suffix"):
            raise RequestRejected(self._backend.name, "suffix is not currently supported", param="suffix")
        prompts = [prompt for prompt in self._prompts(body.get("prompt")) for _ in range(body.get("n") or 1)]
        if body.get("stream"):
            return await self._stream(request, body, prompts)
        choices: list[dict[str, Any]] = []
        usages: list[Usage] = []
        for index, ids in enumerate(prompts):
            parts = [part async for part in self._parts(_Choice(index, list(ids)), body, ids, usages)]
            whole = {**parts[-1], "text": "".join(part["text"] for part in parts)}
            logprobs = [part["logprobs"] for part in parts if part["logprobs"] is not None]
            if logprobs:
                whole["logprobs"] = {key: [item for each in logprobs for item in each[key]] for key in logprobs[0]}
            choices.append(whole)
        return _json({**self._head(), "choices": choices, "usage": _usage(usages)})

    async def embeddings(self, request: web.Request) -> web.Response:
        """A vector per input, a function of its text."""
        body = orjson.loads(await request.read())
        prompts = self._prompts(body.get("input"))
        size = body.get("dimensions") or DIMENSIONS
        data = []
        for index, ids in enumerate(prompts):
            vector = _vector(self._model.decode(ids), size)
            encoded = base64.b64encode(vector.tobytes()).decode() if body.get("encoding_format") == "base64" else None
            data.append({"object": "embedding", "index": index, "embedding": encoded or vector.tolist()})
        read = sum(map(len, prompts))
        usage = {"prompt_tokens": read, "total_tokens": read}
        return _json({"object": "list", "data": data, "model": self._backend.name, "usage": usage})

    async def detokenize(self, request: web.Request) -> web.Response:
        """Ids → text."""
        body = orjson.loads(await request.read())
        return _json({"prompt": self._model.decode(body["tokens"]).decode(errors="replace")})

    def tokens(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """vLLM's answer for a text."""
        ids = self._model.encode(str(body["prompt"]).encode())
        texts = [self._model.decode([id]).decode(errors="replace") for id in ids]
        wanted = texts if body.get("return_token_strs") else None
        size = self._backend.settings.context
        return {"count": len(ids), "max_model_len": size, "tokens": ids, "token_strs": wanted}

    def _prompts(self, value: Any) -> list[list[int]]:
        if isinstance(value, str):
            return [self._model.encode(value.encode())]
        if not isinstance(value, list) or not value:
            raise RequestRejected(self._backend.name, "a prompt is a string, or a list of strings or ids")
        if isinstance(value[0], int):
            value = [value]
        return [self._model.encode(item.encode()) if isinstance(item, str) else list(item) for item in value]

    async def _stream(
        self, request: web.Request, body: Mapping[str, Any], prompts: Sequence[list[int]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        usages: list[Usage] = []
        try:
            for index, ids in enumerate(prompts):
                async for part in self._parts(_Choice(index, list(ids)), body, ids, usages):
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(_sse({**self._head(), "choices": [part]}))
            if (body.get("stream_options") or {}).get("include_usage"):
                await response.write(_sse({**self._head(), "choices": [], "usage": _usage(usages)}))
            await response.write(b"data: [DONE]\n\n")
        except BackendError as error:
            if not response.prepared:
                raise
            await response.write(_sse({"error": {"message": error.message, "type": "server_error", "code": 500}}))
        await response.write_eof()
        return response

    async def _parts(
        self, choice: _Choice, body: Mapping[str, Any], prompt: Sequence[int], usages: list[Usage]
    ) -> AsyncIterator[dict[str, Any]]:
        """The choice of each of its chunks."""
        k = body.get("logprobs")
        if body.get("echo"):
            text = self._model.decode(prompt).decode(errors="replace")
            yield self._part(choice, text, None if k is None else self._echoed(choice, k))
        stop = body.get("stop") or ()
        limit = 16 if body.get("max_tokens") is None else body["max_tokens"]
        if limit == 0:
            usages.append(Usage(len(prompt), 0))
            yield self._part(choice, "", None, "length")
            return
        sampling = Sampling(max_tokens=limit, stop=(stop,) if isinstance(stop, str) else tuple(stop))
        choice.ids = self._model.render(raw_prompt(prompt))
        async with self._backend.stream(TextRequest(raw_prompt(prompt), sampling)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    ids = self._model.encode(event.text.encode())
                    yield self._part(choice, event.text, None if k is None else self._logprobs(choice, ids, k))
                else:
                    assert isinstance(event, TextEnd)
                    usages.append(Usage(len(prompt), event.usage.completion_tokens))
                    yield self._part(choice, "", None, event.finish_reason)

    def _echoed(self, choice: _Choice, k: int) -> dict[str, list[Any]]:
        """The prompt's own log-probabilities; nothing is known of its first token."""
        first, *rest = choice.ids
        choice.ids = [first]
        choice.at = len(self._text(first))
        found = self._logprobs(choice, rest, k)
        head = {"tokens": self._text(first), "token_logprobs": None, "top_logprobs": None, "text_offset": 0}
        return {key: [head[key], *values] for key, values in found.items()}

    def _logprobs(self, choice: _Choice, ids: Sequence[int], k: int) -> dict[str, list[Any]]:
        """Those of further tokens, which it also appends."""
        tokens, values, tops, offsets = [], [], [], []
        for id in ids:
            probabilities = self._model.distribution(choice.ids)
            token, value = self._text(id), float(np.log(probabilities[id]))
            top = cut(probabilities, k) if k else None
            listed = zip(top.ids.tolist(), top.logprobs.tolist(), strict=True) if top else ()
            tokens.append(token)
            values.append(value)
            tops.append({**{self._text(other): logprob for other, logprob in listed}, token: value})
            offsets.append(choice.at)
            choice.ids.append(id)
            choice.at += len(token)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _text(self, id: int) -> str:
        return self._model.decode([id]).decode(errors="replace")

    def _head(self) -> dict[str, Any]:
        return {"id": "cmpl-fake-1", "object": "text_completion", "created": 0, "model": self._backend.name}

    @staticmethod
    def _part(choice: _Choice, text: str, logprobs: Any, finish: str | None = None) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _vector(text: bytes, size: int) -> Any:
    """float32 [size], of length 1."""
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    raw = np.random.Philox(key=key).random_raw(size).astype(np.float64) / 2.0**63 - 1.0
    return (raw / np.linalg.norm(raw)).astype("<f4")


def _usage(usages: Sequence[Usage]) -> dict[str, int]:
    total = sum(usages, Usage())
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
    }


def _sse(payload: Any) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _json(payload: Any) -> web.Response:
    return web.Response(body=orjson.dumps(payload), content_type="application/json")
