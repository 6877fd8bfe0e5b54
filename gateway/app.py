"""The ASGI application.

What a request passes, from the outside in; the order matters, so it is written here and nowhere else:

1. RequestId   opens the request's record; `x-request-id` on every response, whoever sends it
2. AccessLog   one line when all is over, with the status that was really sent
3. Cors        answers preflights, and marks responses (errors too) for allowed origins
4. Guard       turns whatever is raised further in into an error body
5. Auth        keys, before anything is read
6. BodyLimit   refuses what is too large, by its announced length or as it comes
7. Routes      the hot route as plain ASGI; everything else on FastAPI
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.observability.metrics import Metrics
from gateway.runtime import Runtime
from gateway.web.asgi import App, Receive, Scope, Send, send_error
from gateway.web.chat import ChatRoute
from gateway.web.control import control_app, method_not_allowed
from gateway.web.middleware.access_log import AccessLog
from gateway.web.middleware.auth import Auth
from gateway.web.middleware.body_limit import BodyLimit
from gateway.web.middleware.cors import Cors
from gateway.web.middleware.guard import Guard
from gateway.web.middleware.request_id import RequestId


class Application:
    """The whole edge over one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        settings = runtime.settings
        self.metrics = Metrics()
        self._chat = ChatRoute(runtime, self.metrics)
        app: App = Routes({"/v1/chat/completions": self._chat}, control_app(runtime, self.metrics))
        app = BodyLimit(app, settings.limits.body_bytes)
        app = Auth(app, [key.get_secret_value() for key in settings.keys])
        app = Guard(app)
        app = Cors(app, settings.server.cors)
        app = AccessLog(app)
        self._app: App = RequestId(app)

    def end_requests(self) -> None:
        """End what is running: streams get an error event. For the end of a shutdown's patience."""
        self._chat.end_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Routes:
    """Paths that are posted to, and an application for all others."""

    def __init__(self, posts: Mapping[str, App], others: App) -> None:
        self._posts = posts
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._posts.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._others(scope, receive, send)
        elif scope["method"] == "POST":
            await route(scope, receive, send)
        else:
            await send_error(scope, send, method_not_allowed(scope["method"], "POST"))
