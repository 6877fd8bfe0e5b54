"""Nothing escapes: an exception becomes a JSON 500 that says nothing of its cause, and a log line that says everything."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from gateway.web.asgi import App, Disconnected, Message, Receive, Scope, Send, is_http, send_error
from gateway.wire.errors import APIError, internal_error

log = structlog.get_logger("modelnet.web")


class Guard:
    """Also turns `APIError`s raised anywhere further in into responses. tell: hears the code of each, as no route does."""

    def __init__(self, app: App, tell: Callable[[str], None] = lambda code: None) -> None:
        self.app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self.app(scope, receive, send)
            return
        started = False

        async def watching_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watching_send)
        except Disconnected:
            return
        except Exception as error:
            shown = error if isinstance(error, APIError) else internal_error()
            if not isinstance(error, APIError):
                log.exception("unexpected_error", path=scope["path"])
            self._tell(shown.code or shown.type)
            if started:
                raise  # the server closes the connection: the client must not take this for a whole answer
            await send_error(scope, send, shown)
