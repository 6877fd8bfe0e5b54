"""Bearer keys. Where there are no keys everyone on this machine may call (the gateway serves nobody else then), but no page of elsewhere
in a browser here: it may send what it likes to an address of this machine, and under a name of its own that leads there, read the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from gateway.keys.keyring import KeyRefused, Keyring
from gateway.settings.check import is_loopback
from gateway.web.account import set_caller
from gateway.web.asgi import App, Receive, Scope, Send, header, is_http
from gateway.web.middleware.cors import allowed_origins
from gateway.wire.refusals import elsewhere, unauthorized

_OPEN = frozenset({"/healthz", "/readyz"})
"""Probes carry no keys, and say nothing but whether models can serve."""


class Auth:
    """Lets in who has a key, before anything of a request is read. origins: whose pages may call, as of `Cors`."""

    def __init__(self, app: App, keyring: Keyring, origins: Sequence[str] = ()) -> None:
        self.app = app
        self._keyring = keyring
        self._any = "*" in origins
        self._origins = allowed_origins(origins)
        self._hosts = frozenset(filter(None, map(_host, (origin.partition("//")[2] for origin in origins))))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_http(scope) and scope["path"] not in _OPEN:
            key = None
            if self._keyring.required:
                try:
                    key = self._keyring.authenticate(_bearer(header(scope, b"authorization")))
                except KeyRefused as error:
                    raise unauthorized(error.why) from None
            elif not self._any:
                self._check_page(header(scope, b"origin"), header(scope, b"host"))
            set_caller(scope, key)
        await self.app(scope, receive, send)

    def _check_page(self, origin: str | None, host: str | None) -> None:
        """Programs send no origin; browsers always send the host that they think they talk to. Raises APIError (403)."""
        if origin is not None and not self._origins.fullmatch(origin) and not _is_here(origin.partition("//")[2]):
            raise elsewhere("origin")
        if host is not None and not _is_here(host) and _host(host) not in self._hosts:
            raise elsewhere("host")


@lru_cache(maxsize=16)  # every request asks, and nearly always of the same
def _is_here(authority: str) -> bool:
    """Whether `host:port` is of this machine."""
    return is_loopback(_host(authority))


def _host(authority: str) -> str:
    """The host of `host:port`, "" where there is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _bearer(authorization: str | None) -> str:
    """The key in a header, "" for none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
