"""Which pages of other origins may call, told to browsers. Preflights are answered here, before keys are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.web.asgi import App, Message, Receive, Scope, Send, add_headers, header, is_http

_RATE = b", ".join(
    b"x-ratelimit-" + what + b"-" + of for what in (b"limit", b"remaining", b"reset") for of in (b"requests", b"tokens")
)
_EXPOSED = b"x-request-id, retry-after, retry-after-ms, x-should-retry, x-modelnet-degraded, " + _RATE


def allowed_origins(origins: Sequence[str]) -> re.Pattern[str]:
    """What matches those that are named; ":*" at the end of one is any port."""
    exact = [
        re.escape(origin[:-2]) + r"(:[0-9]{1,5})?" if origin.endswith(":*") else re.escape(origin)
        for origin in origins
        if origin != "*"
    ]
    return re.compile("|".join(exact) or r"(?!)")


class Cors:
    """origins: "*" alone is everyone; ":*" at the end of one is any port."""

    def __init__(self, app: App, origins: Sequence[str]) -> None:
        self.app = app
        self._all = "*" in origins
        self._allowed = allowed_origins(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self.app(scope, receive, send)
            return
        origin = header(scope, b"origin")
        headers = self._headers(origin) if origin is not None else []
        if scope["method"] == "OPTIONS":
            await self._preflight(scope, send, headers)
            return

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(message, headers)
            await send(message)

        await self.app(scope, receive, send_with_cors if headers else send)

    def _headers(self, origin: str) -> list[tuple[bytes, bytes]]:
        if self._all:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        vary = (b"vary", b"Origin")
        if not self._allowed.fullmatch(origin):
            return [vary]
        allowed = (b"access-control-allow-origin", origin.encode("latin-1"))
        return [allowed, vary, (b"access-control-expose-headers", _EXPOSED)]

    async def _preflight(self, scope: Scope, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        if any(key == b"access-control-allow-origin" for key, _ in headers):
            asked = header(scope, b"access-control-request-headers") or "authorization, content-type"
            headers = [
                *headers,
                (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
                (b"access-control-allow-headers", asked.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
