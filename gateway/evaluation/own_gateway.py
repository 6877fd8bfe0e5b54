"""A gateway of our own for one sitting, in this process, reached over HTTP like any other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import anyio

from gateway.app import Application
from gateway.evaluation.errors import GatewayGone
from gateway.runtime import NothingLoaded, open_runtime
from gateway.settings import Loaded
from gateway.settings.operations import StaticKey
from gateway.web.serving import Server, bind, url

PATIENCE_SECONDS = 1.0


class _Server(Server):
    """Leaves signals alone: Ctrl-C ends the sitting, and that ends the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def own_gateway(loaded: Loaded) -> AsyncIterator[tuple[str, str | None]]:
    """(URL, key or None) of a gateway whose models are loaded. Raises GatewayGone if none could be."""
    stopped: BaseException | None = None
    with bind("127.0.0.1", 0) as sock:
        async with open_runtime(loaded) as runtime:
            server = _Server(Application(runtime), PATIENCE_SECONDS)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(server.serve, sockets=[sock]))
                try:
                    await runtime.wait_loaded()
                    yield url(sock), _key(loaded)
                except NothingLoaded as error:
                    stopped = GatewayGone(str(error))
                except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it; raised below
                    stopped = error
                server.stop()
                if isinstance(stopped, anyio.get_cancelled_exc_class() | KeyboardInterrupt):
                    tasks.cancel_scope.cancel()
    if stopped is not None:
        raise stopped


def _key(loaded: Loaded) -> str | None:
    """A key of the configuration, where it has any."""
    for entry in loaded.settings.keys:
        secret = entry.key if isinstance(entry, StaticKey) else entry
        return secret.get_secret_value()
    return None
