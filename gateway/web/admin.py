"""The admin API, on a port and with a key of its own: keys, reports of experiments, and how things stand.

    GET    /admin/keys            all keys, with what was spent today, this month and in all
    POST   /admin/keys            {name, expires?, models?, wirings?, requests_per_minute?, …} → the key, shown this once
    GET    /admin/keys/{id}
    PATCH  /admin/keys/{id}       the same fields; what is not named stays
    DELETE /admin/keys/{id}       revoke
    GET    /admin/experiments/{route}?days=&metric=&format=json|html
    GET    /admin/status
    POST   /admin/reload          read the configuration anew

Keys of clients open nothing here, and this key opens nothing there.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import anyio.to_thread
import orjson
import structlog
from fastapi import FastAPI, Query, Request, Response
from pydantic import AfterValidator, Field

import gateway
from gateway.experiments.page import page
from gateway.experiments.report import METRICS, Metric, Report, report
from gateway.keys.key import Key, Rights, named
from gateway.keys.keyring import PERIODS, periods
from gateway.keys.secrets import digest
from gateway.keys.store import KeyStore, UnknownKey
from gateway.ledger.tables import Tables
from gateway.ledger.writer import DAY
from gateway.operations import Operations, keys_target, ledger_target
from gateway.settings import Loaded
from gateway.settings.base import Strict
from gateway.settings.operations import Budget, Moment, Pattern, Rate, unix_seconds
from gateway.settings.values import budget
from gateway.storage import StorageError
from gateway.web.asgi import App, Receive, Scope, Send, header, is_http
from gateway.web.control import install_errors
from gateway.web.middleware.access_log import AccessLog
from gateway.web.middleware.body_limit import BodyLimit
from gateway.web.middleware.guard import Guard
from gateway.web.middleware.request_id import RequestId
from gateway.wire.errors import APIError, bad_request, not_found, overloaded
from gateway.wire.refusals import unauthorized

if TYPE_CHECKING:
    from gateway.reload import Outcome

T = TypeVar("T")
Reload = Callable[[], Awaitable["Outcome"]]

log = structlog.get_logger("modelnet.admin")

_BODY_BYTES = 65_536
_LONGEST_REPORT_DAYS = 3660.0


class KeyFields(Strict):
    """What a key may be given. null is no limit."""

    models: list[Pattern] = Field(default_factory=lambda: ["*"], min_length=1)
    wirings: list[Pattern] = Field(default_factory=lambda: ["*"], min_length=1)
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    budget: Budget | None = None
    expires: Moment | None = None

    def changed(self, rights: Rights) -> Rights:
        """Those rights, but for what was named. Raises APIError (400)."""
        named = self.model_fields_set
        value: dict[str, Any] = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name in named and name not in ("budget", "expires")
        }
        if "budget" in named:
            if self.budget is not None and (self.budget.money is None) == (self.budget.tokens is None):
                raise bad_request("name exactly one of money and tokens", "budget")
            made = budget(self.budget)
            value["budget"] = None if made is None else {"amount": made.amount, "unit": made.unit, "per": made.per}
        return Rights.of({**rights.value(), **value})

    @property
    def expires_at(self) -> float | None:
        """Unix seconds."""
        return None if self.expires is None else unix_seconds(self.expires)


class NewKeyFields(KeyFields):
    """A new key also has a name."""

    name: Annotated[str, AfterValidator(named)]


class AdminAuth:
    """One key, compared in constant time; there is no way in without it."""

    def __init__(self, app: App, key: str) -> None:
        self.app = app
        self._digest = digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_http(scope) and scope["path"] != "/healthz":
            scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
            given = key.strip() if scheme.lower() == "bearer" else ""
            if not hmac.compare_digest(digest(given), self._digest):
                raise unauthorized("wrong" if given else "missing")
        await self.app(scope, receive, send)


def admin_app(loaded: Loaded, operations: Operations, reload: Reload | None = None) -> App:
    """The whole admin edge. `loaded.settings.admin` must be there. reload: None where there is nothing to reload."""
    assert loaded.settings.admin is not None
    app: App = _routes(loaded, operations, reload)
    app = BodyLimit(app, _BODY_BYTES)
    app = AdminAuth(app, loaded.settings.admin.key.get_secret_value())
    app = Guard(app)
    app = AccessLog(app)
    return RequestId(app)


def _routes(loaded: Loaded, operations: Operations, reload: Reload | None) -> FastAPI:
    app = FastAPI(title="ModelNet Gateway, admin", version=gateway.__version__, redirect_slashes=False)
    install_errors(app)

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    @app.get("/admin/status")
    async def status() -> Response:
        """Ledger, limits, keys and shadows as they are now."""
        return _json(_status(operations))

    if reload is not None:

        @app.post("/admin/reload")
        async def reload_now() -> Response:
            """Take over the configuration as its file says now; 409 where that failed, and nothing has changed."""
            outcome = await reload()
            return _json(asdict(outcome), 200 if outcome.ok else 409)

    _key_routes(app, KeyDesk(keys_target(loaded), operations), operations)
    _report_routes(app, loaded, operations)
    return app


class KeyDesk:
    """Changes to the store, each in a thread, on a connection of its own. What changed holds in this process at once."""

    def __init__(self, target: str, operations: Operations) -> None:
        self._target = target
        self._keeper = operations.keeper

    async def do(self, work: Callable[[KeyStore], T]) -> T:
        """Raises APIError."""
        try:
            done = await anyio.to_thread.run_sync(self._run, work)
            if self._keeper is not None:
                await anyio.to_thread.run_sync(self._keeper.refresh)
        except UnknownKey as error:
            raise APIError(404, str(error), code="key_not_found", param="id") from error
        except StorageError as error:
            log.error("keys_unusable", reason=str(error))
            raise overloaded("The database of keys can't be used at the moment.") from error
        return done

    def _run(self, work: Callable[[KeyStore], T]) -> T:
        store = KeyStore(self._target)
        try:
            return work(store)
        finally:
            store.close()


def _key_routes(app: FastAPI, desk: KeyDesk, operations: Operations) -> None:
    @app.get("/admin/keys")
    async def keys() -> Response:
        """Those of the configuration, then those of the store."""
        return _json({"object": "list", "data": [_shown(key, operations) for key in operations.keyring.all()]})

    @app.post("/admin/keys")
    async def create(fields: NewKeyFields) -> Response:
        """The key itself is in this answer, and nowhere else ever."""
        rights = fields.changed(Rights())
        key, text = await desk.do(lambda store: store.create(fields.name, rights, fields.expires_at))
        return _json({**_shown(key, operations), "key": text}, 201)

    @app.get("/admin/keys/{id}")
    async def key(id: str) -> Response:
        """One key."""
        found = next((key for key in operations.keyring.all() if key.id == id), None)
        if found is None:
            raise APIError(404, str(UnknownKey(id)), code="key_not_found", param="id")
        return _json(_shown(found, operations))

    @app.patch("/admin/keys/{id}")
    async def change(id: str, fields: KeyFields) -> Response:
        """Other rights, or another end."""

        def work(store: KeyStore) -> Key:
            changed = store.change(id, fields.changed(store.get(id).rights))
            return store.expire(id, fields.expires_at) if "expires" in fields.model_fields_set else changed

        return _json(_shown(await desk.do(work), operations))

    @app.delete("/admin/keys/{id}")
    async def revoke(id: str) -> Response:
        """It does not work from now on; other processes notice within a second or so."""
        return _json(_shown(await desk.do(lambda store: store.revoke(id)), operations))


def _report_routes(app: FastAPI, loaded: Loaded, operations: Operations) -> None:
    @app.get("/admin/experiments/{route:path}")
    async def experiment(
        route: str,
        request: Request,
        days: Annotated[float, Query(gt=0, le=_LONGEST_REPORT_DAYS)] = 30.0,
        metric: str = "feedback",
        format: Literal["json", "html"] = "json",
    ) -> Response:
        """What the ledger says of a route's arms."""
        if route not in operations.routes or operations.ledger is None:
            raise not_found(request.scope["path"])
        if metric not in METRICS:
            raise bad_request(f"metric must be one of {', '.join(METRICS)}", "metric")
        chosen: Metric = next(name for name in METRICS if name == metric)
        try:
            made = await anyio.to_thread.run_sync(lambda: _report(loaded, operations, route, days, chosen))
        except StorageError as error:
            log.error("ledger_unreadable", reason=str(error))
            raise overloaded("The ledger can't be read at the moment.") from error
        return Response(page(made), media_type="text/html") if format == "html" else _json(made.value())


def _report(loaded: Loaded, operations: Operations, route: str, days: float, metric: Metric) -> Report:
    until = time.time()
    since = until - days * DAY
    tables = Tables(ledger_target(loaded))
    try:
        rows = tables.observations(route, since, until)
        arms = operations.routes[route].arms
        return report(route, rows, since, until, arms=arms, metric=metric, currency=operations.prices.currency)
    finally:
        tables.close()


def _shown(key: Key, operations: Operations) -> dict[str, Any]:
    book = operations.keyring.spending
    named = zip(PERIODS, periods(time.time()), strict=True)
    return {**key.value(), "spent": {name: book.known(key.id, period).value() for name, period in named}}


def _status(operations: Operations) -> dict[str, Any]:
    ledger, shared, shadows = operations.ledger, operations.limiter.shared, operations.shadows
    return {
        "keys": {
            "required": operations.keyring.required,
            "failing": bool(operations.keeper and operations.keeper.failing),
        },
        "limits": {"shared": shared is not None, "down": shared is not None and shared.down},
        "ledger": None
        if ledger is None
        else {
            "waiting": ledger.waiting,
            "written": ledger.written,
            "dropped": ledger.dropped,
            "failing": ledger.failing is not None,
        },
        "shadows": {"running": shadows.running, "failed": shadows.failed, "skipped": shadows.skipped},
    }


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
