"""Every response names its request: `x-request-id`, the client's own if it is sane, else a new one."""

from __future__ import annotations

import random
import re

import structlog

from gateway.observability.record import RequestRecord, attach
from gateway.web.asgi import App, Message, Receive, Scope, Send, add_headers, header, is_http

_SANE = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


def new_request_id() -> str:
    """A name for a request that brought none."""
    return f"req_{random.getrandbits(128):032x}"


class RequestId:
    """Outermost: also opens the request's record and binds the id to all its log lines."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if given is not None and _SANE.fullmatch(given) else new_request_id()
        record = RequestRecord(request_id)
        attach(scope, record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                add_headers(message, [(b"x-request-id", request_id.encode("ascii"))])
            await send(message)

        before = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            structlog.contextvars.reset_contextvars(**before)
