"""Bearer keys. Without configured keys everyone may call (and the gateway serves on this machine only)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from gateway.web.asgi import App, Receive, Scope, Send, header, is_http
from gateway.wire.errors import APIError

_OPEN = frozenset({"/healthz", "/readyz"})
"""Probes carry no keys, and say nothing but whether models can serve."""


class Auth:
    """Keys are kept as digests, and compared all of them in constant time."""

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_http(scope) and self._digests and scope["path"] not in _OPEN:
            self._check(header(scope, b"authorization"))
        await self.app(scope, receive, send)

    def _check(self, authorization: str | None) -> None:
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        # No early end: how long this takes must not tell which key was near.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            message = "Incorrect API key provided." if key else "No API key provided: send it as a bearer token."
            raise APIError(
                401,
                message,
                type="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
