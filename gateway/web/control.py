"""Control routes, on FastAPI: models, probes, metrics, and the pages that describe them. Every error has OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import gateway
from gateway.keys import Rights
from gateway.keys.patterns import matches
from gateway.observability.metrics import CONTENT_TYPE, Metrics
from gateway.observability.record import record_of
from gateway.runtime import ModelNotReady, Runtime
from gateway.web.account import caller
from gateway.web.route import not_ready
from gateway.wire.errors import APIError, bad_request, not_found
from gateway.wire.refusals import not_allowed
from gateway.wire.topology_errors import wiring_error
from strategies.routing import Alias
from strategies.topology import TopologyError, shape
from strategies.topology import format as write
from strategies.topology import models as models_of

Handler = TypeVar("Handler", bound=Callable[..., Any])


def control_app(runtime: Runtime, metrics: Metrics, draining: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application of all routes but the hot one."""
    app = FastAPI(title="ModelNet Gateway", version=gateway.__version__, redirect_slashes=False)
    install_errors(app)

    @_read(app, "/v1/models")
    async def models(request: Request) -> Response:
        """Models, then aliases, then routes: those that the caller's key may use."""
        listed = [model_value(runtime, name) for name in runtime.settings.models]
        listed += [alias_value(runtime, name, alias) for name, alias in runtime.aliases.items()]
        listed += [route_value(runtime, name) for name in runtime.operations.routes]
        if (key := caller(request.scope)) is not None:
            listed = [value for value in listed if visible(key.rights, runtime, value["id"])]
        return _json({"object": "list", "data": listed})

    @_read(app, "/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        """A model, an alias, or any wiring of them that could run and that the caller's key may use."""
        value = named_value(runtime, name)
        if (key := caller(request.scope)) is not None and not visible(key.rights, runtime, name):
            raise not_allowed(name)
        return _json(value)

    @app.api_route("/v1/responses/{rest:path}", methods=["GET", "HEAD", "POST", "DELETE"], include_in_schema=False)
    async def stored_response(rest: str) -> Response:
        """Earlier responses, and what else needs a store: there is none."""
        raise APIError(404, f"There is no response {rest!r}: responses are not stored.", code="response_not_found")

    @_read(app, "/healthz")
    async def healthz() -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    @_read(app, "/readyz")
    async def readyz() -> Response:
        """200 once nothing is loading any more and at least one model can serve; what can't is named either way. 503 at the end."""
        reasons = await runtime.not_ready()
        ready = not runtime.loading and len(reasons) < len(runtime.settings.models)
        value: dict[str, Any] = {"status": "ready" if ready else "not ready", "not_ready": reasons}
        if breakers := runtime.guards.not_closed():
            value["breakers"] = breakers
        if draining():
            value["status"], ready = "draining", False
        return _json(value, 200 if ready else 503)

    @_read(app, "/metrics")
    async def prometheus() -> Response:
        """In Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return app


def _read(app: FastAPI, path: str) -> Callable[[Handler], Handler]:
    """Register what answers GET and HEAD. The description names it once: an operation there has an id of its own."""

    def register(handler: Handler) -> Handler:
        app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)(handler)
        return app.get(path)(handler)  # for the description only: the one before takes all requests

    return register


def install_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(APIError, _on_api_error)


def model_value(runtime: Runtime, name: str) -> dict[str, Any]:
    """A model as /v1/models shows it. Under `modelnet`: where it stands and what it is."""
    settings, status = runtime.settings.models[name], runtime.statuses[name]
    extension: dict[str, Any] = {"kind": "model", "state": status.state}
    if status.reason is not None:
        extension["reason"] = status.reason
    if settings.description is not None:
        extension["description"] = settings.description
    return _value(runtime, name, settings.owned_by, extension)


def alias_value(runtime: Runtime, name: str, alias: Alias) -> dict[str, Any]:
    """An alias as /v1/models shows it."""
    topology = runtime.route(name).topology
    extension = {"kind": "alias", "expression": alias.expression, "wiring": write(topology), "shape": shape(topology)}
    if alias.description:
        extension["description"] = alias.description
    return _value(runtime, name, "modelnet", extension)


def route_value(runtime: Runtime, name: str) -> dict[str, Any]:
    """A route as /v1/models shows it. Which wirings share it, and how, is nothing to its users."""
    extension = {"kind": "route"}
    if description := runtime.operations.routes[name].description:
        extension["description"] = description
    return _value(runtime, name, "modelnet", extension)


def visible(rights: Rights, runtime: Runtime, name: str) -> bool:
    """Whether a key may use this name, which means something. Of a route: at all; an arm may be refused all the same."""
    if name in runtime.operations.routes:
        return matches(rights.wirings, name)
    topology = runtime.route(name).topology
    return rights.allow(name, write(topology), (model.name for model in models_of(topology)))


def named_value(runtime: Runtime, name: str) -> dict[str, Any]:
    """Whatever a model name means. Raises APIError where it means nothing, or nothing that could run."""
    if name in runtime.settings.models:
        return model_value(runtime, name)
    if name in runtime.operations.routes:
        return route_value(runtime, name)
    if name in runtime.aliases:
        return alias_value(runtime, name, runtime.aliases[name])
    try:
        route = runtime.route(name)
        runtime.plan(route)
    except TopologyError as error:
        raise wiring_error(name, error) from error
    except ModelNotReady as error:
        raise not_ready(error) from error
    topology = route.topology
    extension = {"kind": "wiring", "wiring": write(topology), "shape": shape(topology)}
    return _value(runtime, name, "modelnet", extension)


def _value(runtime: Runtime, name: str, owned_by: str, extension: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": runtime.created, "owned_by": owned_by, "modelnet": extension}


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _error(request: Request, error: APIError) -> Response:
    record_of(request.scope).error = error.code or error.type
    return Response(error.body(), error.status, headers=error.headers(), media_type="application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return _error(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return _error(request, not_found(request.scope["path"]))
    if error.status_code == 405:
        return _error(request, method_not_allowed(request.method, headers.get("Allow", "")))
    return _error(request, APIError(error.status_code, str(error.detail), headers=headers))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error(request, bad_request(str(first["msg"]), ".".join(str(part) for part in first["loc"][1:]) or None))


def method_not_allowed(method: str, allow: str) -> APIError:
    """A path that is there, asked in a way that it does not answer."""
    message = f"Method {method} is not allowed here; use {allow}."
    return APIError(405, message, code="method_not_allowed", headers={"allow": allow})


__all__ = ["control_app", "method_not_allowed"]
