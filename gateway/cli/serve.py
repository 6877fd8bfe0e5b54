"""`modelnet serve`: from a configuration to a serving process, and back down."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sized
from functools import partial
from pathlib import Path

import anyio

from gateway.app import Application
from gateway.cli.check import complain, read_config, say
from gateway.observability.logs import setup_logs
from gateway.runtime import NothingLoaded, open_runtime
from gateway.settings import Loaded, SettingsError, host_problem
from gateway.web.serving import Server, bind, url


def serve(config: Path | None, host: str, port: int) -> int:
    """Serve until a signal comes. Returns the exit code."""
    try:
        loaded = read_config(config)
    except SettingsError as error:
        return complain(error)
    problem = host_problem(loaded.settings, host)
    if problem is not None:
        return complain(ValueError(problem))
    try:
        sock = bind(host, port)
    except OSError as error:
        say(f"can't serve on {host}:{port}: {error.strerror or error}")
        return 1
    setup_logs(loaded.settings.server.log.level, loaded.settings.server.log.format)
    with sock:
        return anyio.run(partial(_serve, loaded, sock), backend_options={"use_uvloop": sys.platform != "win32"})


async def _serve(loaded: Loaded, sock: socket.socket) -> int:
    code = 0
    async with open_runtime(loaded) as runtime:
        server = Server(Application(runtime), loaded.settings.server.shutdown_seconds)

        async def announce() -> None:
            nonlocal code
            settings = loaded.settings
            say(f"{loaded.file}: {_count(settings.models, 'model')}, {_count(settings.aliases, 'alias')}")
            say(f"loading {', '.join(settings.models)}")
            try:
                await runtime.wait_loaded()
            except NothingLoaded as error:
                say(str(error))
                code = 1
                server.stop()
                return
            for name, status in runtime.statuses.items():
                if status.state == "ready":
                    say(f"  {name}: ready after {status.seconds or 0:.1f} s")
                else:
                    say(f"  {name}: {status.state}: {status.reason}")
            say(f"serving on {url(sock)}/v1")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(announce)
            await server.serve(sockets=[sock])
            tasks.cancel_scope.cancel()
    return code


def _count(things: Sized, noun: str) -> str:
    plural = {"alias": "aliases"}.get(noun, f"{noun}s")
    return f"{len(things)} {noun if len(things) == 1 else plural}"
