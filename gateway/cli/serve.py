"""`modelnet serve`: from a configuration to a serving process, and back down."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from gateway.app import Application
from gateway.builders import Builders
from gateway.cli.check import complain, read_config, say
from gateway.observability.logs import setup_logs
from gateway.operations import OperationsError, StorageError, has_stored_keys, open_operations
from gateway.reload import Generation, Reloader, first_generation, open_reloader
from gateway.runtime import NothingLoaded, open_runtime
from gateway.settings import Loaded, Settings, SettingsError, host_problem
from gateway.web.admin import admin_app
from gateway.web.serving import Server, bind, serve_admin, settle, url

if TYPE_CHECKING:
    from gateway.observability.tracing import Tracing


def serve(config: Path | None, host: str, port: int) -> int:
    """Serve until a signal comes. Returns the exit code."""
    try:
        loaded = read_config(config)
    except SettingsError as error:
        return complain(error)
    try:
        problem = host_problem(loaded.settings, host, has_stored_keys(loaded))
    except StorageError as error:
        say(f"the keys can't be read: {error}")
        return 1
    if problem is not None:
        return complain(ValueError(problem))
    admin = loaded.settings.admin
    with contextlib.ExitStack() as sockets:
        try:
            place = f"{host}:{port}"
            sock = sockets.enter_context(bind(host, port))
            admin_sock = None
            if admin is not None:
                place = f"{admin.host}:{admin.port}"
                admin_sock = sockets.enter_context(bind(admin.host, admin.port))
        except OSError as error:
            say(f"can't serve on {place}: {error.strerror or error}")
            return 1
        setup_logs(loaded.settings.server.log.level, loaded.settings.server.log.format)
        run = partial(_serve, loaded, host, sock, admin_sock)
        return anyio.run(run, backend_options={"use_uvloop": sys.platform != "win32"})


async def _serve(loaded: Loaded, host: str, sock: socket.socket, admin_sock: socket.socket | None) -> int:
    try:
        return await _serve_with(loaded, host, sock, admin_sock)
    except OperationsError as error:
        say(str(error))
        return 1


async def _serve_with(loaded: Loaded, host: str, sock: socket.socket, admin_sock: socket.socket | None) -> int:
    build = Builders(loaded)
    async with (
        _traces(loaded.settings) as tracing,
        open_runtime(loaded, build) as runtime,
        open_operations(loaded, host) as operations,
    ):
        runtime.operations = operations
        first = first_generation(loaded, runtime, Application(runtime, tracing=tracing), build)
        async with open_reloader(first, host) as reloader:
            return await _until_signalled(reloader, sock, admin_sock)


async def _until_signalled(reloader: Reloader, sock: socket.socket, admin_sock: socket.socket | None) -> int:
    """Serve, and reload when asked to. Returns the exit code."""
    code, first = 0, reloader.switch.current
    settings = first.loaded.settings.server
    server = Server(reloader.switch, settings.shutdown_seconds, settings.drain_seconds, settings.idle_seconds)

    async def announce() -> None:
        nonlocal code
        try:
            await _show_loading(first)
        except NothingLoaded as error:
            say(str(error))
            code = 1
            server.should_exit = True
            return
        if admin_sock is not None:
            say(f"admin API on {url(admin_sock)}/admin")
        settle()
        say(f"serving on {url(sock)}/v1")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(announce)
        tasks.start_soon(_reload_when_told, reloader)
        if settings.watch_seconds is not None:
            tasks.start_soon(reloader.watch, settings.watch_seconds)
        if admin_sock is not None:
            admin = admin_app(first.loaded, first.runtime.operations, reloader.reload)
            tasks.start_soon(serve_admin, admin, admin_sock)
        await server.serve(sockets=[sock])
        tasks.cancel_scope.cancel()
    return code


async def _show_loading(first: Generation) -> None:
    """Raises NothingLoaded."""
    settings, runtime = first.loaded.settings, first.runtime
    say(f"{first.loaded.file}: {_count(settings.models, 'model')}, {_count(settings.aliases, 'alias')}")
    say(f"loading {', '.join(settings.models)}")
    await runtime.wait_loaded()
    for name, status in runtime.statuses.items():
        if status.state == "ready":
            say(f"  {name}: ready after {status.seconds or 0:.1f} s")
        else:
            say(f"  {name}: {status.state}: {status.reason}")


async def _reload_when_told(reloader: Reloader) -> None:
    """At every SIGHUP. Runs until cancelled."""
    if not hasattr(signal, "SIGHUP"):
        return
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            await reloader.reload()


@contextlib.asynccontextmanager
async def _traces(settings: Settings) -> AsyncIterator[Tracing | None]:
    """Where traces go, None if nowhere. What waits is sent at the end. Raises OperationsError without the libraries for it."""
    if settings.tracing is None:
        yield None
        return
    try:
        from gateway.observability.tracing import Tracing
    except ImportError as error:
        raise OperationsError(
            f"`tracing` needs OpenTelemetry: pip install 'modelnet-gateway[otel]' ({error})"
        ) from error
    tracing = Tracing(settings.tracing)
    try:
        yield tracing
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(tracing.close)


def _count(things: Sized, noun: str) -> str:
    plural = {"alias": "aliases"}.get(noun, f"{noun}s")
    return f"{len(things)} {noun if len(things) == 1 else plural}"
