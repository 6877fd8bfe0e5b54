"""What servers offer beyond the OpenAI API that token sessions need: prompts as ids, log-probabilities by id.

    vLLM        /tokenize renders messages to ids and names the context; /v1/completions takes ids and, with
                `return_tokens_as_token_ids`, keys log-probabilities "token_id:N"; `logprob_token_ids` gives those of chosen
                ids (servers that do not know the field yet: no lookup).
    llama.cpp   /apply-template and /tokenize render; /props names the context; /v1/completions takes ids and gives every
                log-probability its id. No lookup.

Both give log-probabilities of the model itself, before any sampling setting. Every call is one request; the servers' prefix
caches make it one forward pass of the ids that are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import orjson

from backends.errors import BackendError, BackendUnavailable, CapabilityMissing, RequestRejected
from backends.openai_http.failures import UpstreamStatus, not_protocol
from backends.openai_http.http import Upstream
from backends.openai_http.settings import OpenAIHTTPSettings
from backends.openai_http.wire import messages as as_json
from backends.types import LogProbs, Message, TopK, Vocabulary

_ROUNDING = 1e-6
"""Least mass outside a cut distribution (probability). Servers compute in float32, so the listed ones can add up to 1 or a
bit more although others are possible; 0 would claim that they are not."""

MOST_LOOKUPS = 8
"""Requests that one look-up may take. Thousands of tokens, each request a forward pass, would hold up a step for many seconds;
a fuser does better to go on uncertified."""

_PROBE = (Message("user", "Hi"),)


class Dialect(Protocol):
    """max_k: most tokens per position that the server lists, None: no limit."""

    max_k: int | None

    async def render(self, messages: Sequence[Message]) -> tuple[list[int], int | None]:
        """The prompt's ids and the server's context in tokens, if it says."""
        ...

    async def top(self, ids: Sequence[int], k: int) -> TopK:
        """The next token's distribution after these ids."""
        ...

    async def lookup(self, ids: Sequence[int], wanted: Sequence[int]) -> LogProbs:
        """Exact log-probabilities of the wanted ids there. Raises CapabilityMissing, also where they are too many."""
        ...


async def find_dialect(
    name: str, model: str, settings: OpenAIHTTPSettings, upstream: Upstream, vocabulary: Vocabulary
) -> Dialect | str:
    """Which dialect the server speaks, tried with a whole step; or the reason why it can't open sessions.

    Raises the BackendError where the server can't be reached, is overloaded or refuses the key: no verdict.
    """
    call = _Call(name, model, settings, upstream)
    for kind in (VLLM, LlamaCpp):
        dialect: Dialect = kind(call, vocabulary)
        try:
            ids, _ = await dialect.render(_PROBE)
        except (RequestRejected, BackendUnavailable) as error:
            if not _is_answer(error):
                raise
            continue
        try:
            top = await dialect.top(ids, 2)
        except (RequestRejected, BackendUnavailable) as error:
            if not _is_answer(error):
                raise
            return "its server gives no log-probabilities by token id"
        if len(top.ids) < 1:
            return "its server's token ids are not those of the configured vocabulary"
        return dialect
    return "its server does not render conversations to token ids"


class _Call:
    """Requests to one model."""

    def __init__(self, name: str, model: str, settings: OpenAIHTTPSettings, upstream: Upstream) -> None:
        self.name = name
        self.settings = settings
        self._model = model
        self._upstream = upstream

    async def post(self, path: str, body: Mapping[str, Any], *, root: bool = True) -> dict[str, Any]:
        base = self.settings.root if root else self.settings.api
        answer = await self._upstream.call("POST", base + path, {"model": self._model, **body})
        if not isinstance(answer, dict):
            raise not_protocol(self.name, answer)
        return answer

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self._upstream.call("GET", self.settings.root + path)
        if not isinstance(answer, dict):
            raise not_protocol(self.name, answer)
        return answer

    async def complete(self, ids: Sequence[int], logprobs: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        """One token after these ids; the `logprobs` of the answer's choice."""
        body = {
            "prompt": [int(id) for id in ids],
            "max_tokens": 1,
            "temperature": 0.0,
            # Neutral, whatever the server's defaults are: some can be told to report processed log-probabilities.
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stream": False,
            "logprobs": logprobs,
            **extra,
        }
        answer = await self.post("/completions", body, root=False)
        try:
            found = answer["choices"][0]["logprobs"]
        except (KeyError, IndexError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise not_protocol(self.name, answer)
        return found


class VLLM:
    """vLLM."""

    def __init__(self, call: _Call, vocabulary: Vocabulary) -> None:
        self._call = call
        self._size = len(vocabulary)
        self.max_k: int | None = call.settings.max_logprobs
        self._looks_up = True  # until it turns out not to

    async def render(self, messages: Sequence[Message]) -> tuple[list[int], int | None]:
        kept = ("chat_template_kwargs", "chat_template")
        extra = {key: value for key, value in self._call.settings.extra_body.items() if key in kept}
        body = {**extra, "messages": as_json(messages), "add_generation_prompt": True}
        answer = await self._call.post("/tokenize", body)
        ids, limit = answer.get("tokens"), answer.get("max_model_len")
        if not _are_ids(ids) or not isinstance(limit, int):
            raise not_protocol(self._call.name, answer)
        return list(ids), limit

    async def top(self, ids: Sequence[int], k: int) -> TopK:
        return _top(await self._listed(ids, k, {}), k, self._size)

    async def lookup(self, ids: Sequence[int], wanted: Sequence[int]) -> LogProbs:
        name, most = self._call.name, self._call.settings.max_logprobs
        if self._looks_up and len(wanted) > MOST_LOOKUPS * most:
            raise CapabilityMissing(name, f"The server of model {name!r} can't look up {len(wanted)} tokens at once.")
        found: dict[int, float] = {}
        for at in range(0, len(wanted), most):
            part = [int(id) for id in wanted[at : at + most]]
            if self._looks_up:
                found |= await self._listed(ids, 1, {"logprob_token_ids": part})
                self._looks_up = all(id in found for id in part)  # an older server ignores the field
            if not self._looks_up:
                raise CapabilityMissing(name, f"The server of model {name!r} can't look up single tokens.")
        return np.array([found[int(id)] for id in wanted], dtype=np.float64)

    async def _listed(self, ids: Sequence[int], k: int, extra: Mapping[str, Any]) -> dict[int, float]:
        found = await self._call.complete(ids, k, {"return_tokens_as_token_ids": True, **extra})
        try:
            listed = found["top_logprobs"][0]
            return {int(key.removeprefix("token_id:")): float(value) for key, value in listed.items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise not_protocol(self._call.name, found) from None


class LlamaCpp:
    """llama.cpp's server."""

    def __init__(self, call: _Call, vocabulary: Vocabulary) -> None:
        self._call = call
        self._size = len(vocabulary)
        self._end = min(vocabulary.end_ids)
        self._context: int | None = None
        self.max_k: int | None = None

    async def render(self, messages: Sequence[Message]) -> tuple[list[int], int | None]:
        kept = ("chat_template_kwargs",)
        extra = {key: value for key, value in self._call.settings.extra_body.items() if key in kept}
        rendered = await self._call.post("/apply-template", {**extra, "messages": as_json(messages)})
        if not isinstance(text := rendered.get("prompt"), str):
            raise not_protocol(self._call.name, rendered)
        answer = await self._call.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        if not _are_ids(ids := answer.get("tokens")):
            raise not_protocol(self._call.name, answer)
        return list(ids), await self._limit()

    async def top(self, ids: Sequence[int], k: int) -> TopK:
        # The end is forced to be the token it writes: after a token that is half a character this server goes on writing
        # and forgets the probabilities it came from. They are reported from before the bias.
        extra = {"n_probs": k, "cache_prompt": True, "post_sampling_probs": False, "logit_bias": [[self._end, 1e6]]}
        found = await self._call.complete(ids, k, extra)
        try:
            listed = {int(top["id"]): float(top["logprob"]) for top in found["content"][0]["top_logprobs"]}
        except (KeyError, IndexError, TypeError, ValueError):
            raise not_protocol(self._call.name, found) from None
        return _top(listed, k, self._size)

    async def lookup(self, ids: Sequence[int], wanted: Sequence[int]) -> LogProbs:
        name = self._call.name
        raise CapabilityMissing(name, f"The server of model {name!r} can't look up single tokens.")

    async def _limit(self) -> int | None:
        if self._context is None:
            settings = (await self._call.get("/props")).get("default_generation_settings")
            context = settings.get("n_ctx") if isinstance(settings, dict) else None
            self._context = context if isinstance(context, int) else 0
        return self._context or None


def _top(listed: Mapping[int, float], k: int, size: int) -> TopK:
    """Sorted and cut to k; ids beyond the table (padding of the output layer) count as outside."""
    pairs = sorted(((-value, id) for id, value in listed.items() if 0 <= id < size))[:k]
    logprobs = np.array([-value for value, _ in pairs], dtype=np.float64)
    ids = np.array([id for _, id in pairs], dtype=np.int32)
    outside = 0.0 if len(pairs) == size else max(1.0 - float(np.exp(logprobs).sum()), _ROUNDING)
    return TopK(ids, logprobs, outside)


def _are_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(isinstance(id, int) for id in value)


def _is_answer(error: BackendError) -> bool:
    """If the server understood enough to say no, which is a verdict; a server that is down gives none."""
    cause = error.__cause__
    if isinstance(cause, UpstreamStatus):
        return isinstance(error, RequestRejected) or cause.status in (200, 404, 500, 501)
    return isinstance(cause, orjson.JSONDecodeError)
