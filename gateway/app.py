"""The ASGI application.

What a request passes, from the outside in; the order matters, so it is written here and nowhere else:

1. RequestId   opens the request's record; `x-request-id` on every response, whoever sends it
   (Tracing)   a span around it, where traces are configured
2. AccessLog   one line when all is over, with the status that was really sent
3. Cors        answers preflights, and marks responses (errors too) for allowed origins
4. Accounts    what a request holds and spends, and its row in the ledger, whatever became of it
5. Guard       turns whatever is raised further in into an error body
6. Auth        keys, before anything is read
7. Wishes      what headers ask for: less time, less priority
8. BodyLimit   refuses what is too large, by its announced length or as it comes
9. Routes      what keeps models busy as plain ASGI; everything else on FastAPI
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.observability.health import EdgeCollector, HealthCollector
from gateway.observability.metrics import Metrics
from gateway.observability.operations import OperationsCollector
from gateway.runtime import Runtime
from gateway.web.admission import Admission, Priority
from gateway.web.asgi import App, Receive, Scope, Send, send_error
from gateway.web.chat import ChatRoute
from gateway.web.completions import CompletionsRoute
from gateway.web.control import control_app, method_not_allowed
from gateway.web.embeddings import EmbeddingsRoute
from gateway.web.feedback import FEEDBACK, FeedbackRoute
from gateway.web.middleware.access_log import AccessLog
from gateway.web.middleware.accounts import Accounts
from gateway.web.middleware.auth import Auth
from gateway.web.middleware.body_limit import BodyLimit
from gateway.web.middleware.cors import Cors
from gateway.web.middleware.guard import Guard
from gateway.web.middleware.request_id import RequestId
from gateway.web.middleware.wishes import Wishes
from gateway.web.passthrough import DetokenizeRoute, TokenizeRoute
from gateway.web.responses import ResponsesRoute

if TYPE_CHECKING:
    from gateway.observability.tracing import Tracing


class Application:
    """The whole edge over one runtime. before: the one whose place it is to take, after a reload. tracing: None: no traces."""

    def __init__(self, runtime: Runtime, before: Application | None = None, tracing: Tracing | None = None) -> None:
        settings, operations = runtime.settings, runtime.operations
        self.runtime = runtime
        self._edge: _Edge = before._edge if before is not None else _Edge(runtime, tracing)
        self._edge.take_over(runtime)
        self.metrics, self._admission = self._edge.metrics, self._edge.admission
        common = (runtime, self.metrics, self._admission)
        posts: dict[str, App] = {
            "/v1/chat/completions": ChatRoute(*common),
            "/v1/completions": CompletionsRoute(*common),
            "/v1/responses": ResponsesRoute(*common),
            "/v1/embeddings": EmbeddingsRoute(*common),
            "/tokenize": TokenizeRoute(*common),
            "/detokenize": DetokenizeRoute(*common),
            FEEDBACK: FeedbackRoute(operations),
        }
        app: App = Routes(posts, control_app(runtime, self.metrics, lambda: self._admission.draining))
        app = BodyLimit(app, settings.limits.body_bytes)
        app = Wishes(app, settings.shedding.keys)
        app = Auth(app, operations.keyring, settings.server.cors)
        app = Guard(app, self.metrics.turned_away)
        app = Accounts(app, operations, posts.keys() - {FEEDBACK})
        app = Cors(app, settings.server.cors)
        app = AccessLog(app)
        if self._edge.tracing is not None:
            app = self._edge.tracing.wrap(app)
        self._app: App = RequestId(app)

    def begin_drain(self) -> None:
        """From now on probes are told that this gateway is about to end; all else goes on."""
        self._admission.draining = True

    def end_requests(self) -> None:
        """End what is running: streams get an error event. For the end of a shutdown's patience."""
        self._admission.end_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Edge:
    """What the process has once, whatever configuration it serves."""

    def __init__(self, runtime: Runtime, tracing: Tracing | None) -> None:
        self._runtime = runtime
        self.tracing = tracing
        self.metrics = Metrics()
        self.admission = Admission(runtime.settings.limits.concurrent_requests)
        ear = runtime.guards.ear
        ear.counts, ear.calls = self.metrics.health, tracing.calls if tracing is not None else None
        for collector in (
            OperationsCollector(runtime.operations),
            HealthCollector(lambda: (self._runtime.settings.models, self._runtime.catalog)),
            EdgeCollector(self.admission),
        ):
            self.metrics.registry.register(collector)

    def take_over(self, runtime: Runtime) -> None:
        """This is what is served from now on."""
        self._runtime = runtime
        shedding = runtime.settings.shedding
        shares: dict[Priority, float] = {"low": shedding.low, "normal": shedding.normal, "high": 1.0}
        self.admission.resize(runtime.settings.limits.concurrent_requests, shares)
        self.metrics.details.know(runtime.settings.models)


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
