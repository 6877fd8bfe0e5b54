"""The shortest way through: a request for one model with a server of its own is handed on as it came, and so is the answer.

Which requests: the name means a single model whose backend forwards (`ForwardingBackend`), no alias tells that model anything of its
own, the request holds nothing of ours (`modelnet`), the model is not to read ahead, and the ledger does not keep answers. All others take
the way through the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import structlog

from backends.estimate import body_tokens
from backends.passtimes import PassTimes
from backends.protocol import ForwardingBackend
from backends.types import ForwardRequest
from gateway.observability.metrics import Metrics
from gateway.observability.record import RequestRecord
from gateway.runtime import Runtime
from gateway.web.account import account_of
from gateway.web.admission import Admission
from gateway.web.asgi import Receive, Scope, Send
from gateway.web.exchange import Exchange
from gateway.web.route import within
from gateway.wire.body import json_object
from gateway.wire.decode import RequestLimits
from gateway.wire.fields import Fields
from gateway.wire.forwardable import check_forwardable, only_text
from strategies.engine.options import WILLING
from strategies.prompting import PromptSet
from strategies.prompting.prompts import LANGUAGES
from strategies.routing import Alias
from strategies.topology import Model, TopologyError

_MOST_NAMES = 4096

log = structlog.get_logger("modelnet.requests")


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name means here. times: the model's. max_tokens: the alias's, where the request has no budget. drafted: it is to read
    ahead where it can."""

    model: str
    backend: ForwardingBackend
    times: PassTimes
    wiring: bytes
    max_tokens: int | None
    drafted: bool = False


class Forwarder:
    """Answers the chat requests that can be handed on. A subclass does so for requests of another kind."""

    kind: Literal["chat", "text"] = "chat"

    def __init__(self, runtime: Runtime, metrics: Metrics, admission: Admission, limits: RequestLimits) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._admission = admission
        self._limits = limits
        self._targets: dict[str, Target | None] = {}
        self._catalog = runtime.catalog

    async def answered(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord, body: bytes) -> bool:
        """Answer the request if it can be handed on; else False, and nothing has happened. Raises APIError, Disconnected."""
        fields = json_object(body)
        model = fields.get("model")
        if type(model) is not str or "modelnet" in fields:
            return False
        if self.kind == "chat" and self._runtime.operations.settings.ledger.texts:
            return False  # answers are to be kept, so they have to be read
        target = self.target(model)
        if target is None or (target.drafted and self.kind == "chat" and only_text(fields)):
            return False
        record.model, record.shape, record.wiring = model, "single", target.model
        prompts = self._check(fields)
        stream = bool(fields.get("stream"))
        settings = self._runtime.settings
        if stream:
            record.kind = "stream"
        if settings.server.log.prompts:
            log.info("messages", messages=self._said(fields))
        seconds = within(settings.limits.request_seconds, record.timeout)
        # The backend is given the gateway's own time: that a client gives its request less says nothing about the server.
        most = settings.limits.request_seconds
        request = ForwardRequest(body, fields, model, stream, most, target.max_tokens, self.kind, prompts)
        exchange = Exchange(
            scope, receive, send, record, target.wiring, stream, seconds, settings.server.keepalive_seconds
        )
        account = account_of(scope, self._runtime.operations)
        await account.admit_model(
            model, target.model, *_tokens(fields, len(body), target, settings.limits.answer_max_tokens)
        )
        self._admission.enter(exchange, record.priority)
        account.hold(partial(self._admission.leave, exchange))
        self._metrics.begin(stream)
        try:
            with target.times.shared():
                await exchange.run(target.backend.forward(request))
        finally:
            self._metrics.end(stream)
            self._admission.leave(exchange)
            if record.usage is not None and (exchange.whole or not record.usage.estimated):
                self._metrics.forwarded(target.model, record)
        return True

    def _check(self, fields: Fields) -> int:
        """How many prompts there are. Raises APIError (400)."""
        check_forwardable(fields, self._limits)
        return 1

    def _said(self, fields: Fields) -> Any:
        """What the client said, for the log."""
        return [{"role": message["role"], "content": message.get("content")} for message in fields["messages"]]

    def _is_told(self, alias: Alias) -> bool:
        """Whether the model is told anything but what the client said."""
        return _tells(self._runtime.prompts[alias.prompts or "default"])

    def target(self, model: str) -> Target | None:
        """What a name means, if requests to it are handed on. A model that can't serve now is the engine's to refuse."""
        if self._catalog is not self._runtime.catalog:
            self._catalog = self._runtime.catalog
            self._targets.clear()
        try:
            target = self._targets[model]
        except KeyError:
            if len(self._targets) >= _MOST_NAMES:  # names are the clients' words
                self._targets.clear()
            target = self._targets[model] = self._resolved(model)
        if target is not None and self._runtime.statuses[target.model].state != "ready":
            return None
        return target

    def _resolved(self, model: str) -> Target | None:
        try:
            route = self._runtime.route(model)
        except TopologyError:
            return None
        if not isinstance(route.topology, Model):
            return None
        name = route.topology.name
        alias = route.alias or Alias(model)
        entry = self._catalog.get(name)
        if entry is None or not entry.native or not isinstance(entry.backend, ForwardingBackend):
            return None
        if self._is_told(alias):
            return None
        drafts = alias.drafts or self._runtime.settings.limits.drafts
        drafted = drafts in WILLING and entry.token_backend() is not None
        return Target(name, entry.backend, entry.times, name.encode(), alias.max_tokens, drafted)


def _tokens(fields: Mapping[str, Any], size: int, target: Target, default: int) -> tuple[int, int]:
    """What a request may read and write, estimated from the size of its body, for its key's limits."""
    written = fields.get("max_completion_tokens") or fields.get("max_tokens") or target.max_tokens or default
    n = fields.get("n") or 1
    return n * body_tokens(size), n * written


def _tells(prompts: PromptSet) -> bool:
    """Whether a single model is told anything but the conversation."""
    return any(prompts.template("single", "solver", language) for language in LANGUAGES)
