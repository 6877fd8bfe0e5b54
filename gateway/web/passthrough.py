"""Routes that ask one model's backend one thing and answer with one JSON body.

POST /tokenize and /detokenize, as vLLM has them: handed to the server of a single model; models that run here answer from
their own vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from backends.catalog import Entry
from backends.errors import CapabilityMissing
from backends.estimate import body_tokens
from backends.protocol import RawBackend, TokenizerBackend
from gateway.observability.record import RequestRecord
from gateway.web.account import account_of
from gateway.web.asgi import Receive, Scope, Send, read_body
from gateway.web.route import OneBody, Route
from gateway.wire.body import json_object
from gateway.wire.errors import bad_request, unsupported_endpoint
from gateway.wire.fields import Fields, string
from gateway.wire.tokenization import decode_ids, decode_tokenize, detokenized, tokenized

_NO_TOKENS = "it does not tell its tokens"


class Reply(OneBody):
    """The answer of one backend."""

    value: Mapping[str, Any] = {}

    async def end(self) -> None:
        """As in `Outlet`."""
        await self.deliver(orjson.dumps(self.value))


class AskRoute(Route):
    """A subclass writes `_ask`."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        body = await read_body(receive)
        fields = json_object(body)
        model = string(fields, "model")
        if not model:
            raise bad_request("You must provide a model.", "model")
        record.model = model
        account = account_of(scope, self._runtime.operations)
        plan = self._planned(account.direct(model, scope["headers"]))
        record.shape, record.wiring = plan.shape, plan.models[0]
        if plan.shape != "single":
            raise unsupported_endpoint(f"{scope['path']} needs a single model; {model!r} is a wiring of several.")
        entry = self._runtime.catalog[plan.models[0]]
        reply = Reply(scope, send)

        async def work() -> Exception | None:
            try:
                reply.value = await self._ask(fields, entry, record)
            except CapabilityMissing as error:
                return unsupported_endpoint(error.message)
            return None

        with self._admission.place(record.priority) as limit, self._metrics.active(False):
            account.hold(partial(self._admission.leave, limit))
            await account.admit_model(model, plan.models[0], body_tokens(len(body)))
            await self._attend(receive, reply, limit, work, seconds=record.timeout)

    async def _ask(self, fields: Fields, entry: Entry, record: RequestRecord) -> Mapping[str, Any]:
        """The answer's body. Raises APIError, BackendError; CapabilityMissing becomes a 404."""
        raise NotImplementedError


class TokenizeRoute(AskRoute):
    """Text or conversation → token ids."""

    async def _ask(self, fields: Fields, entry: Entry, record: RequestRecord) -> Mapping[str, Any]:
        backend = entry.backend
        if isinstance(backend, TokenizerBackend):
            return await backend.tokenize(_for_server(fields))
        if not isinstance(backend, RawBackend):
            raise lacks(entry, _NO_TOKENS)
        asked = decode_tokenize(fields, self._runtime.settings.limits.messages)
        if asked.prompt is None:
            ids = await backend.render(asked.messages)
        else:
            ids = await backend.encode(asked.prompt, special=asked.special)
        vocabulary = await backend.vocabulary() if asked.strings else None
        return tokenized(ids, await backend.context_size(), vocabulary)


class DetokenizeRoute(AskRoute):
    """Token ids → text."""

    async def _ask(self, fields: Fields, entry: Entry, record: RequestRecord) -> Mapping[str, Any]:
        backend = entry.backend
        if isinstance(backend, TokenizerBackend):
            return await backend.detokenize(_for_server(fields))
        if not isinstance(backend, RawBackend):
            raise lacks(entry, _NO_TOKENS)
        vocabulary = await backend.vocabulary()
        return detokenized(decode_ids(fields, "tokens", len(vocabulary)), vocabulary)


def lacks(entry: Entry, what: str) -> CapabilityMissing:
    """A model that can't do what its route is for."""
    name = entry.backend.name
    return CapabilityMissing(name, f"Model {name!r} can't do this: {what}.")


def _for_server(fields: Fields) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != "model"}
