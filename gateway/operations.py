"""What a gateway needs to serve others: keys, limits, the ledger, routes. Built from a configuration here, and nowhere else.

    async with open_operations(loaded, host) as operations:
        runtime.operations = operations

Without that block (tests, one answer on the terminal) there is `Operations(settings)`: the configuration's own keys and routes, limits
in this process, no ledger, no shadows, and nothing that has to be ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import structlog

from gateway.experiments.route import Route
from gateway.experiments.shadow import Shadows
from gateway.keys.keeper import Keeper
from gateway.keys.keyring import Keyring
from gateway.keys.store import KeyStore
from gateway.ledger.prices import Prices
from gateway.ledger.writer import Ledger
from gateway.limits.limiter import Limiter
from gateway.limits.shared import SharedLimits
from gateway.settings import Loaded, Settings
from gateway.settings.check import is_loopback
from gateway.settings.values import experiment_routes, prices, static_keys
from gateway.storage import StorageError, is_there, target

OPENING_SECONDS = 10.0
"""How long the start waits for the ledger's database; requests do not wait for it."""

log = structlog.get_logger("modelnet.operations")


class OperationsError(Exception):
    """The gateway can't be served like this; the text says why, for the terminal."""


class Operations:
    """What the edge asks. keys_required: also while there is none. keeper, ledger: None where nothing is kept."""

    def __init__(self, settings: Settings, keys_required: bool = False) -> None:
        self.settings = settings
        self.keyring = Keyring(static_keys(settings), keys_required)
        self.limiter = Limiter(self.keyring.spending)
        self.prices: Prices = prices(settings)
        self.routes: Mapping[str, Route] = experiment_routes(settings)
        self.shadows = Shadows(self.prices, settings.shadows.concurrency, settings.shadows.seconds)
        self.keeper: Keeper | None = None
        self.ledger: Ledger | None = None

    def renew(self, settings: Settings) -> None:
        """Take over what may change while the gateway serves: the configuration's keys, prices and routes. The rest goes on.

        settings: with the sections that need a restart as they were (`gateway.reload`)."""
        self.settings = settings
        self.keyring.set_static(static_keys(settings))
        self.prices = prices(settings)
        self.shadows.prices = self.prices
        self.routes = experiment_routes(settings)


def keys_target(loaded: Loaded) -> str:
    """Where keys that are made while the gateway runs are kept."""
    written = loaded.settings.key_store.database
    return target(None if written is None else written.get_secret_value(), "keys.db", loaded.resolve)


def ledger_target(loaded: Loaded) -> str:
    """Where the ledger is."""
    written = loaded.settings.ledger.database
    return target(None if written is None else written.get_secret_value(), "ledger.db", loaded.resolve)


def has_stored_keys(loaded: Loaded) -> bool:
    """Whether keys were ever made. Raises StorageError."""
    place = keys_target(loaded)
    if not is_there(place):
        return False
    store = KeyStore(place)
    try:
        return bool(store.all())
    finally:
        store.close()


@asynccontextmanager
async def open_operations(loaded: Loaded, host: str = "127.0.0.1") -> AsyncIterator[Operations]:
    """All of it, running. host: that the gateway is served on. Leaving the block writes what is to be kept.

    Raises OperationsError where the keys can't be read or a client library is missing.
    """
    settings = loaded.settings
    operations = Operations(settings, keys_required=not is_loopback(host))
    keeper = Keeper(keys_target(loaded), operations.keyring, settings.key_store.refresh_seconds)
    shared = None
    if (written := settings.shared_limits) is not None:
        try:
            shared = SharedLimits(written.url.get_secret_value(), written.timeout, written.prefix)
        except ValueError as error:
            raise OperationsError(f"shared_limits.url can't be used: {error}") from error
        operations.limiter = Limiter(operations.keyring.spending, shared, written.when_down)
    try:
        await anyio.to_thread.run_sync(keeper.start)
    except StorageError as error:
        raise OperationsError(f"the keys can't be read: {error}") from error
    operations.keeper = keeper
    if settings.ledger.enabled:
        operations.ledger = ledger = Ledger(
            ledger_target(loaded),
            flush=settings.ledger.flush_seconds,
            queue=settings.ledger.queue,
            days=settings.ledger.days,
        )
        await anyio.to_thread.run_sync(ledger.start, OPENING_SECONDS)
    stopped: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            if shared is not None:
                tasks.start_soon(shared.run)
            operations.shadows.start(tasks, operations.ledger)
            try:
                yield operations
            except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it
                stopped = error
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            if operations.ledger is not None:
                await anyio.to_thread.run_sync(operations.ledger.close)
            await anyio.to_thread.run_sync(keeper.close)
            if shared is not None:
                await shared.aclose()
    if stopped is not None:
        raise stopped


__all__ = [
    "Operations",
    "OperationsError",
    "StorageError",
    "has_stored_keys",
    "keys_target",
    "ledger_target",
    "open_operations",
]
