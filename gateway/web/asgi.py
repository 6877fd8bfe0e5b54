"""The few lines of ASGI that everything here shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from gateway.observability.record import record_of
from gateway.wire.errors import APIError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS = "modelnet.headers"
GONE = "modelnet.gone"
"""Key of the scope: tells that the client's connection is lost, by an attribute `gone`. A server of ours puts it there."""


class Disconnected(Exception):
    """The client has left."""


def header(scope: Scope, name: bytes) -> str | None:
    """A request header, by its lower-case name; of several with one name, the first."""
    by_name = scope.get(_HEADERS)
    if by_name is None:
        by_name = scope[_HEADERS] = dict(reversed(list(scope["headers"])))
    value = by_name.get(name)
    return None if value is None else bytes(value).decode("latin-1")


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI takes them."""
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]


def json_head(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Message:
    """The message that starts a whole response."""
    all_headers = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    return {"type": "http.response.start", "status": status, "headers": encoded(all_headers)}


async def send_json(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """A whole response."""
    await send(json_head(status, body, headers))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(scope: Scope, send: Send, error: APIError) -> None:
    """An error as a whole response; its code goes into the log."""
    record_of(scope).error = error.code or error.type
    await send_json(send, error.status, error.body(), error.headers())


async def read_body(receive: Receive) -> bytes:
    """All of the request's body. Raises Disconnected; the limit on size is held by the middleware around."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has left. Only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def lost(scope: Scope) -> bool:
    """Whether the client's connection is known to be lost. A server then takes what is sent, and drops it."""
    leaving = scope.get(GONE)
    return leaving is not None and bool(leaving.gone)


def is_http(scope: Scope) -> bool:
    """Whether middleware concerns itself with this at all."""
    return bool(scope["type"] == "http")


def add_headers(message: Message, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """More headers for a response that starts with this message."""
    message["headers"] = [*message.get("headers", ()), *headers]
