"""One line per request. No headers, no query, no bodies: what is logged is listed here."""

from __future__ import annotations

import logging

from gateway.observability.logs import QuickLogger
from gateway.observability.record import record_of
from gateway.web.asgi import App, Receive, Scope, Send, is_http

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_LONGEST = 512


class AccessLog:
    """Probes are logged at debug only."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._logger = QuickLogger("modelnet.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            record = record_of(scope)
            fields = {
                "method": scope["method"],
                "path": scope["path"][:_LONGEST],
                "status": record.status,
                "ms": round(record.seconds() * 1000, 2),
            }
            if record.model is not None:
                fields |= {"model": record.model[:_LONGEST], "shape": record.shape, "kind": record.kind}
            if record.first_token is not None:
                fields["first_token_ms"] = round(record.first_token * 1000, 2)
            if record.usage is not None:
                fields["prompt_tokens"] = record.usage.prompt_tokens
                fields["completion_tokens"] = record.usage.completion_tokens
            fields |= {name: value for name in ("key", "route", "arm") if (value := getattr(record, name)) is not None}
            if record.error is not None:
                fields["error"] = record.error
            self._logger.log(logging.DEBUG if scope["path"] in _QUIET else logging.INFO, "request", fields)
