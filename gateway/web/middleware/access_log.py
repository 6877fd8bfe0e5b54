"""One line per request. No headers, no query, no bodies: what is logged is listed here."""

from __future__ import annotations

import logging
from typing import Any

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
            record, path = record_of(scope), scope["path"]
            fields: dict[str, Any] = {
                "method": scope["method"],
                "path": path[:_LONGEST],
                "status": record.status,
                "ms": round(record.seconds() * 1000, 2),
            }
            if record.model is not None:
                fields["model"] = record.model[:_LONGEST]
                fields["shape"] = record.shape
                fields["kind"] = record.kind
            if record.first_token is not None:
                fields["first_token_ms"] = round(record.first_token * 1000, 2)
            if (usage := record.usage) is not None:
                fields["prompt_tokens"] = usage.prompt_tokens
                fields["completion_tokens"] = usage.completion_tokens
            if record.key is not None:
                fields["key"] = record.key
            if record.route is not None:
                fields["route"] = record.route
                fields["arm"] = record.arm
            if record.error is not None:
                fields["error"] = record.error
            self._logger.log(logging.DEBUG if path in _QUIET else logging.INFO, "request", fields)
