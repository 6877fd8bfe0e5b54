"""Bearer keys. Where there are no keys everyone may call (and the gateway serves on this machine only)."""

from __future__ import annotations

from gateway.keys.keyring import KeyRefused, Keyring
from gateway.web.account import set_caller
from gateway.web.asgi import App, Receive, Scope, Send, header, is_http
from gateway.wire.refusals import unauthorized

_OPEN = frozenset({"/healthz", "/readyz"})
"""Probes carry no keys, and say nothing but whether models can serve."""


class Auth:
    """Lets in who has a key, before anything of a request is read."""

    def __init__(self, app: App, keyring: Keyring) -> None:
        self.app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_http(scope) and scope["path"] not in _OPEN:
            key = None
            if self._keyring.required:
                try:
                    key = self._keyring.authenticate(_bearer(header(scope, b"authorization")))
                except KeyRefused as error:
                    raise unauthorized(error.why) from None
            set_caller(scope, key)
        await self.app(scope, receive, send)


def _bearer(authorization: str | None) -> str:
    """The key in a header, "" for none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
